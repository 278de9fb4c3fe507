/* trit_depth_linear on NEON: rows decoded to bytes, in the blocks and with the epilogue of the other int8 products. The
 * file that includes this defines `dot`, the products of 16 bytes added to four lanes. */
#ifndef BT_CPU_NEON_TRIT_DEPTH_H
#define BT_CPU_NEON_TRIT_DEPTH_H

#include "int8_views.h"
#include "neon.h"

#define DECODED 16
#define SHIFT 0
#include "trit_depth_rows.h"

static inline __attribute__((always_inline)) codes lookup(const uint8_t table[16], codes index) {
    return (codes)vqtbl1q_u8(vld1q_u8(table), (uint8x16_t)index);
}

BT_NEON_INLINE int32x4_t dot(int32x4_t acc, int8x16_t w, int8x16_t q);

/* Quarters of 64 columns, which are 16 bytes in each plane; those of q end with zeros. */
BT_NEON_INLINE void dots(const uint8_t *const *w, const int8_t *const *q, int64_t begin, int64_t end, int32_t *out,
                         int rows, int tokens) {
    int32x4_t acc[16];
#pragma GCC unroll 16
    for (int a = 0; a < 16; a++)
        acc[a] = vdupq_n_s32(0);
    int64_t at = bt_neon_plane_at(begin);
    for (int64_t c = begin; c < end; c += BT_QUARTER, at = bt_neon_plane_next(at))
#pragma GCC unroll 4
        for (int plane = 0; plane < 4; plane++)
#pragma GCC unroll 4
            for (int a = 0; a < rows; a++) {
                const int8x16_t weights = vld1q_s8((const int8_t *)w[a] + at + 64 * plane);
#pragma GCC unroll 4
                for (int b = 0; b < tokens; b++)
                    acc[4 * a + b] = dot(acc[4 * a + b], weights, vld1q_s8(q[b] + at + 64 * plane));
            }
    bt_neon_add_lanes(out, acc, rows, tokens);
}

BT_NEON_DOTS(4, 1)
BT_NEON_DOTS(2, 4)

/* The view of decoded rows, the first of which is row `row`. */
static bt_ternary_linear_w2a8 rows_from(const bt_trit_depth_linear *p, const bt_ternary_linear_w2a8 *view,
                                        int64_t row) {
    bt_ternary_linear_w2a8 rows = *view;
    rows.scale = p->scale + row * p->lds;
    rows.y = (char *)p->y + row * (p->y_type == BT_F32 ? 4 : 2);
    rows.bias = p->bias ? (const char *)p->bias + row * (p->bias_type == BT_F32 ? 4 : 2) : NULL;
    return rows;
}

BT_NEON_INLINE bt_status trit_depth_linear(const bt_trit_depth_linear *p, int64_t tile_begin, int64_t tile_end) {
    BT_ASSERT(p->k <= BT_I8_MAX_K && p->depth <= BT_MAX_DEPTH && p->ldq % BT_ACT_BLOCK == 0);
    if (p->group % BT_QUARTER != 0 && p->group < p->k)
        return bt_trit_depth_linear_scalar(p, tile_begin, tile_end);
    const bt_neon_shape shapes[] = {{2, 4, dots_2x4}, {4, 1, dots_4x1}};
    bt_ternary_linear_w2a8 view = bt_trit_depth_view(p);
    view.w = p->memory, view.ldw = bt_quantized_width(p->k, BT_ORDER_PLANES);
    for (int64_t index = tile_begin; index < tile_end; index++) {
        const bt_tile t = bt_tile_at(p->m, p->n, index);
        for (int64_t row = t.n0; row < t.n1; row += BT_DEPTH_ROWS) {
            const int count = t.n1 - row < BT_DEPTH_ROWS ? (int)(t.n1 - row) : BT_DEPTH_ROWS;
            const bt_ternary_linear_w2a8 rows = rows_from(p, &view, row);
            const bt_tile part = {t.m0, t.m1, 0, count};
            decode_rows(p, row, count, p->memory, view.ldw);
            bt_neon_tile(&rows, part, shapes, 2);
        }
    }
    return BT_OK;
}

#endif
