/* ternary_linear_w2a8 by smmla: trits times int8, a 2 x 2 tile of sums a register, eight products each.
 *
 *   two rows      8 + 8 packed bytes, joined before they are decoded to 4 planes of {-1, 0, +1}
 *   two tokens    8 + 8 bytes of the same columns and plane
 *
 * The halves of a quarter are an operand each. Joining tokens costs an instruction an operand, which four rows share.
 * With one token half of every tile would be wasted: there sdot does as much.
 *
 * A sum over k <= 2^22 columns is at most 128 * 2^22 = 2^29: int32 holds it. */
#include "neon.h"

/* Bytes 0 .. 7 of a then of b, and bytes 8 .. 15. */
BT_NEON_INLINE uint8x16_t join(uint8x16_t a, uint8x16_t b, int half) {
    const uint64x2_t x = vreinterpretq_u64_u8(a), y = vreinterpretq_u64_u8(b);
    return vreinterpretq_u8_u64(half ? vzip2q_u64(x, y) : vzip1q_u64(x, y));
}

/* acc[4 * row + token], row and token even: the tile of row, row + 1 and token, token + 1; q at its plane 0. */
BT_NEON_INLINE void dot_quarter(int32x4_t *acc, const uint8_t *const *w, int64_t w_at, const int8_t *const *q,
                                int64_t q_at, int rows, int tokens) {
    int8x16x4_t trits[4];
#pragma GCC unroll 2
    for (int a = 0; a < rows; a += 2) {
        const uint8x16_t first = vld1q_u8(w[a] + w_at), second = vld1q_u8(w[a + 1] + w_at);
        trits[a] = bt_neon_trits(join(first, second, 0));
        trits[a + 1] = bt_neon_trits(join(first, second, 1));
    }
#pragma GCC unroll 4
    for (int plane = 0; plane < 4; plane++)
#pragma GCC unroll 2
        for (int b = 0; b < tokens; b += 2) {
            const uint8x16_t first = vreinterpretq_u8_s8(vld1q_s8(q[b] + q_at + 64 * plane));
            const uint8x16_t second = vreinterpretq_u8_s8(vld1q_s8(q[b + 1] + q_at + 64 * plane));
#pragma GCC unroll 2
            for (int half = 0; half < 2; half++) {
                const int8x16_t x = vreinterpretq_s8_u8(join(first, second, half));
#pragma GCC unroll 2
                for (int a = 0; a < rows; a += 2)
                    acc[4 * a + b] = vmmlaq_s32(acc[4 * a + b], trits[a + half].val[plane], x);
            }
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
#pragma GCC unroll 2
    for (int a = 0; a < rows; a += 2)
#pragma GCC unroll 2
        for (int b = 0; b < tokens; b += 2) {
            vst1_s32(out + 4 * a + b, vget_low_s32(acc[4 * a + b]));
            vst1_s32(out + 4 * (a + 1) + b, vget_high_s32(acc[4 * a + b]));
        }
}

BT_NEON_DOTS(4, 2)
BT_NEON_DOTS(4, 4)

bt_status bt_ternary_linear_w2a8_neoni8mm(const bt_ternary_linear_w2a8 *p, int64_t tile_begin, int64_t tile_end) {
    const bt_neon_shape shapes[] = {{4, 4, dots_4x4}, {4, 2, dots_4x2}, {4, 1, bt_neondot_4x1}};
    return bt_neon_w2a8(p, tile_begin, tile_end, shapes, 3);
}
