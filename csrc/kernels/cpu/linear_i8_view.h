/* linear_i8 as the frames of int8 products see it: one group of columns, rows of bytes in place of packed ones. */
#ifndef BT_CPU_LINEAR_I8_VIEW_H
#define BT_CPU_LINEAR_I8_VIEW_H

#include "../linear_i8.h"
#include "../ternary_linear_w2a8.h"

static inline bt_ternary_linear_w2a8 bt_i8_view(const bt_linear_i8 *p) {
    const bt_ternary_linear_w2a8 rows = {.q = p->q,
                                         .q_scale = p->q_scale,
                                         .q_step = p->q_step,
                                         .q_sum = p->q_sum,
                                         .w = (const uint8_t *)p->w,
                                         .scale = p->scale,
                                         .bias = p->bias,
                                         .y = p->y,
                                         .m = p->m,
                                         .n = p->n,
                                         .k = p->k,
                                         .ldq = p->ldq,
                                         .ldw = p->ldw,
                                         .ldy = p->ldy,
                                         .lds = 1,
                                         .group = p->k,
                                         .y_type = p->y_type,
                                         .bias_type = p->bias_type,
                                         .digits = p->digits};
    return rows;
}

#endif
