/* ternary_linear_w2a8 by sdot: trits times int8, four products a 32-bit lane.
 *
 *   quarter of a row  16 bytes, byte j = columns 4j .. 4j + 3      decoded to 4 planes of {-1, 0, +1}
 *   q in planes       4 x 16 bytes of the same columns
 *
 * A sum over k <= 2^22 columns is at most 128 * 2^22 = 2^29: int32 holds it, in a lane and over the lanes. */
#include "neon.h"

/* acc[4 * row + token] of one quarter; q at its plane 0. */
BT_NEON_INLINE void dot_quarter(int32x4_t *acc, const uint8_t *const *w, int64_t w_at, const int8_t *const *q,
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
            for (int a = 0; a < rows; a++)
                acc[4 * a + b] = vdotq_s32(acc[4 * a + b], trits[a].val[plane], x);
        }
}

BT_NEON_INLINE void add(int32x4_t *acc, const uint8_t *const *w, int64_t w_at, const int8_t *const *q, int64_t begin,
                        int64_t end, int rows, int tokens) {
    int64_t q_at = bt_neon_plane_at(begin);
    for (int64_t c = begin; c < end; c += BT_QUARTER, w_at += BT_QUARTER_BYTES, q_at = bt_neon_plane_next(q_at))
        dot_quarter(acc, w, w_at, q, q_at, rows, tokens);
}

BT_NEON_INLINE void dots(const uint8_t *const *w, const int8_t *const *q, int64_t begin, int64_t end, int32_t *out,
                         int rows, int tokens) {
    int32x4_t acc[16];
    bt_neon_sum(acc, w, q, begin, end, rows, tokens, add);
    bt_neon_add_lanes(out, acc, rows, tokens);
}

BT_NEON_DOTS(2, 4)

BT_NOINLINE void bt_neondot_4x1(const uint8_t *const *w, const int8_t *const *q, int64_t begin, int64_t end,
                                int32_t *out) {
    dots(w, q, begin, end, out, 4, 1);
}

bt_status bt_ternary_linear_w2a8_neondot(const bt_ternary_linear_w2a8 *p, int64_t tile_begin, int64_t tile_end) {
    const bt_neon_shape shapes[] = {{2, 4, dots_2x4}, {4, 1, bt_neondot_4x1}};
    return bt_neon_w2a8(p, tile_begin, tile_end, shapes, 2);
}
