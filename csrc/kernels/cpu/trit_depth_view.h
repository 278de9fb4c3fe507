/* trit_depth_linear as the frames of int8 products see it; the rows, which are decoded as they are met, are left out.
 */
#ifndef BT_CPU_TRIT_DEPTH_VIEW_H
#define BT_CPU_TRIT_DEPTH_VIEW_H

#include "../ternary_linear_w2a8.h"
#include "../trit_depth_linear.h"

static inline bt_ternary_linear_w2a8 bt_trit_depth_view(const bt_trit_depth_linear *p) {
    const bt_ternary_linear_w2a8 view = {.q = p->q,
                                         .q_scale = p->q_scale,
                                         .q_step = p->q_step,
                                         .q_sum = p->q_sum,
                                         .scale = p->scale,
                                         .bias = p->bias,
                                         .y = p->y,
                                         .m = p->m,
                                         .n = p->n,
                                         .k = p->k,
                                         .ldq = p->ldq,
                                         .ldy = p->ldy,
                                         .lds = p->lds,
                                         .group = p->group,
                                         .y_type = p->y_type,
                                         .bias_type = p->bias_type,
                                         .digits = p->digits};
    return view;
}

#endif
