/* linear_i8 and trit_depth_linear as the frames of int8 products see them: as ternary_linear_w2a8. */
#ifndef BT_CPU_INT8_VIEWS_H
#define BT_CPU_INT8_VIEWS_H

#include "../linear_i8.h"
#include "../ternary_linear_w2a8.h"
#include "../trit_depth_linear.h"

/* What all of them have alike. */
#define BT_INT8_FIELDS(p)                                                                                              \
    .q = (p)->q, .q_scale = (p)->q_scale, .q_step = (p)->q_step, .q_sum = (p)->q_sum, .scale = (p)->scale,             \
    .bias = (p)->bias, .y = (p)->y, .m = (p)->m, .n = (p)->n, .k = (p)->k, .ldq = (p)->ldq, .ldy = (p)->ldy,           \
    .y_type = (p)->y_type, .bias_type = (p)->bias_type, .digits = (p)->digits

/* One group of columns, rows of bytes in place of packed ones. */
static inline bt_ternary_linear_w2a8 bt_i8_view(const bt_linear_i8 *p) {
    const bt_ternary_linear_w2a8 rows = {BT_INT8_FIELDS(p), .w = (const uint8_t *)p->w, .ldw = p->ldw, .lds = 1,
                                         .group = p->k};
    return rows;
}

/* The rows, which are decoded as they are met, are left out. */
static inline bt_ternary_linear_w2a8 bt_trit_depth_view(const bt_trit_depth_linear *p) {
    const bt_ternary_linear_w2a8 view = {BT_INT8_FIELDS(p), .lds = p->lds, .group = p->group};
    return view;
}

#endif
