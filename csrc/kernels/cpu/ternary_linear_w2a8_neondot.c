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

BT_NEON_INLINE void dots(const uint8_t *const *w, const int8_t *const *q, int64_t begin, int64_t end, int32_t *out,
                         int rows, int tokens) {
    int32x4_t acc[16];
    const int64_t whole = begin + (end - begin) / BT_QUARTER * BT_QUARTER;
    int64_t q_at = bt_neon_plane_at(begin);
#pragma GCC unroll 16
    for (int a = 0; a < 16; a++)
        acc[a] = vdupq_n_s32(0);
    for (int64_t c = begin; c < whole; c += BT_QUARTER, q_at = bt_neon_plane_next(q_at))
        dot_quarter(acc, w, c / 4, q, q_at, rows, tokens);
    if (whole < end) {
        uint8_t buffer[4][BT_QUARTER_BYTES];
        const uint8_t *padded[4];
        for (int a = 0; a < rows; a++)
            padded[a] = bt_neon_pad(buffer[a], sizeof buffer[a], w[a], whole, end);
        dot_quarter(acc, padded, 0, q, q_at, rows, tokens);
    }
#pragma GCC unroll 4
    for (int a = 0; a < rows; a++)
#pragma GCC unroll 4
        for (int b = 0; b < tokens; b++)
            out[4 * a + b] = vaddvq_s32(acc[4 * a + b]);
}

static BT_NOINLINE void dots_4x1(const uint8_t *const *w, const int8_t *const *q, int64_t begin, int64_t end,
                                 int32_t *acc) {
    dots(w, q, begin, end, acc, 4, 1);
}

static BT_NOINLINE void dots_2x4(const uint8_t *const *w, const int8_t *const *q, int64_t begin, int64_t end,
                                 int32_t *acc) {
    dots(w, q, begin, end, acc, 2, 4);
}

bt_status bt_ternary_linear_w2a8_neondot(const bt_ternary_linear_w2a8 *p, int64_t tile_begin, int64_t tile_end) {
    return bt_neon_w2a8(p, tile_begin, tile_end, dots_4x1, dots_2x4);
}
