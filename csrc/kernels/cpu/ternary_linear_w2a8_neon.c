/* ternary_linear_w2a8 by smlal: trits times int8 in int16 lanes, widened to int32 early.
 *
 *   quarter of a row  16 bytes, byte j = columns 4j .. 4j + 3      decoded to 4 planes of {-1, 0, +1}
 *   q in planes       4 x 16 bytes of the same columns
 *
 * A quarter adds 8 products to each int16 lane, each at most 128: after WIDEN = 28 quarters (7 blocks of 256 columns) a
 * lane is at most 8 * 28 * 128 = 28672 < 2^15. In int32 a sum over k <= 2^22 columns is at most 2^29. */
#include "neon.h"

enum { WIDEN = 28 };

/* sum[4 * row + token] of one quarter; q at its plane 0. */
BT_NEON_INLINE void dot_quarter(int16x8_t *sum, const uint8_t *const *w, int64_t w_at, const int8_t *const *q,
                                int64_t q_at, int rows, int tokens) {
    int8x16x4_t trits[4];
#pragma GCC unroll 4
    for (int a = 0; a < rows; a++)
        trits[a] = bt_neon_trits(vld1q_u8(w[a] + w_at));
#pragma GCC unroll 4
    for (int b = 0; b < tokens; b++)
#pragma GCC unroll 4
        for (int plane = 0; plane < 4; plane++) {
            const int8x16_t x = vld1q_s8(q[b] + q_at + 64 * plane);
#pragma GCC unroll 4
            for (int a = 0; a < rows; a++) {
                const int8x16_t trit = trits[a].val[plane];
                sum[4 * a + b] = vmlal_s8(sum[4 * a + b], vget_low_s8(trit), vget_low_s8(x));
                sum[4 * a + b] = vmlal_high_s8(sum[4 * a + b], trit, x);
            }
        }
}

/* Adds at most WIDEN whole quarters of columns [begin, end) to acc[4 * row + token]. */
BT_NEON_INLINE void add_narrow(int32x4_t *acc, const uint8_t *const *w, int64_t w_at, const int8_t *const *q,
                               int64_t begin, int64_t end, int rows, int tokens) {
    int16x8_t sum[16];
    int64_t q_at = bt_neon_plane_at(begin);
#pragma GCC unroll 16
    for (int a = 0; a < 16; a++)
        sum[a] = vdupq_n_s16(0);
    for (int64_t c = begin; c < end; c += BT_QUARTER, w_at += BT_QUARTER_BYTES, q_at = bt_neon_plane_next(q_at))
        dot_quarter(sum, w, w_at, q, q_at, rows, tokens);
#pragma GCC unroll 4
    for (int a = 0; a < rows; a++)
#pragma GCC unroll 4
        for (int b = 0; b < tokens; b++)
            acc[4 * a + b] = vpadalq_s16(acc[4 * a + b], sum[4 * a + b]);
}

BT_NEON_INLINE void add(int32x4_t *acc, const uint8_t *const *w, int64_t w_at, const int8_t *const *q, int64_t begin,
                        int64_t end, int rows, int tokens) {
    const int64_t step = WIDEN * BT_QUARTER;
    for (int64_t c = begin; c < end; c += step, w_at += WIDEN * BT_QUARTER_BYTES)
        add_narrow(acc, w, w_at, q, c, c + step < end ? c + step : end, rows, tokens);
}

BT_NEON_INLINE void dots(const uint8_t *const *w, const int8_t *const *q, int64_t begin, int64_t end, int32_t *out,
                         int rows, int tokens) {
    int32x4_t acc[16];
    bt_neon_sum(acc, w, q, begin, end, rows, tokens, add);
    bt_neon_add_lanes(out, acc, rows, tokens);
}

BT_NEON_DOTS(4, 1)
BT_NEON_DOTS(2, 4)

bt_status bt_ternary_linear_w2a8_neon(const bt_ternary_linear_w2a8 *p, int64_t tile_begin, int64_t tile_end) {
    const bt_neon_shape shapes[] = {{2, 4, dots_2x4}, {4, 1, dots_4x1}};
    return bt_neon_w2a8(p, tile_begin, tile_end, shapes, 2);
}
