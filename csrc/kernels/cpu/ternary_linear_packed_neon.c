/* ternary_linear_packed by NEON: a word of a row is 16 weights of one lane, 16 bytes are 4 lanes (a quarter).
 *
 *   index of four weights, a word a lane     00 00 1n 0n      n = nibble of two codes
 *   looked up in the table of either code    00 00 80 3f = 1.0      00 00 80 bf = -1.0      00 00 00 00 = 0.0
 *
 * The contract's 16 lanes are four accumulators, one a quarter; a quarter is walked over CHUNK blocks before the next
 * one, so that only its own accumulators are in registers. */
#include "../ternary_linear_packed.h"
#include "neon.h"

enum { CHUNK = 4, BLOCK_BYTES = BT_FLOAT_BLOCK / 4, MAX_SUMS = 16 };

/* Looks up the bytes 4 lane + byte, each as 00 00 vv vv: an index out of range gives 0. */
#define WORD(lane, byte) 255, 255, 4 * lane + byte, 4 * lane + byte
#define WORDS(byte) {WORD(0, byte), WORD(1, byte), WORD(2, byte), WORD(3, byte)}
static const uint8_t spread[4][16] = {WORDS(0), WORDS(1), WORDS(2), WORDS(3)};
#undef WORDS
#undef WORD

/* The index of the lower or the upper nibble. */
BT_NEON_INLINE uint8x16_t nibble(uint8x16_t index, int upper) {
    const uint8x16_t third = vreinterpretq_u8_u32(vdupq_n_u32(0x00100000));
    const uint8x16_t n = upper ? vshrq_n_u8(index, 4) : vandq_u8(index, vdupq_n_u8(15));
    return vorrq_u8(n, third);
}

/* The weights of the lower or the upper code of each nibble. */
BT_NEON_INLINE float32x4_t weights(uint8x16_t index, int upper) {
    const uint8x16x2_t lower_code = {{{0, 0x3f, 0xbf, 0, 0, 0x3f, 0xbf, 0, 0, 0x3f, 0xbf, 0, 0, 0x3f, 0xbf, 0},
                                      {0, 0x80, 0x80, 0, 0, 0x80, 0x80, 0, 0, 0x80, 0x80, 0, 0, 0x80, 0x80, 0}}};
    const uint8x16x2_t upper_code = {{{0, 0, 0, 0, 0x3f, 0x3f, 0x3f, 0x3f, 0xbf, 0xbf, 0xbf, 0xbf, 0, 0, 0, 0},
                                      {0, 0, 0, 0, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0, 0, 0, 0}}};
    return vreinterpretq_f32_u8(vqtbl2q_u8(upper ? upper_code : lower_code, index));
}

/* Adds one quarter of `blocks` blocks to acc[row * tokens + token]; w and x at that quarter of the first block. */
BT_NEON_INLINE void walk(float32x4_t *acc, const uint8_t *const *w, int64_t w_at, const float *const *x, int64_t x_at,
                         int64_t blocks, int rows, int tokens) {
    float32x4_t lane[MAX_SUMS];
#pragma GCC unroll 16
    for (int a = 0; a < rows * tokens; a++)
        lane[a] = acc[a];
    for (; blocks > 0; blocks--, w_at += BLOCK_BYTES, x_at += BT_FLOAT_BLOCK) {
        uint8x16_t packed[4];
#pragma GCC unroll 4
        for (int a = 0; a < rows; a++)
            packed[a] = vld1q_u8(w[a] + w_at);
#pragma GCC unroll 1 /* all four at once do not fit the registers */
        for (int byte = 0; byte < 4; byte++) {
            const uint8x16_t at = vld1q_u8(spread[byte]);
            uint8x16_t index[4];
#pragma GCC unroll 4
            for (int a = 0; a < rows; a++)
                index[a] = vqtbl1q_u8(packed[a], at);
#pragma GCC unroll 4
            for (int s = 0; s < 4; s++) {
                float32x4_t weight[4];
#pragma GCC unroll 4
                for (int a = 0; a < rows; a++)
                    weight[a] = weights(nibble(index[a], s & 2), s & 1);
#pragma GCC unroll 4
                for (int b = 0; b < tokens; b++) {
                    const float32x4_t value = vld1q_f32(x[b] + x_at + 64 * byte + 16 * s);
#pragma GCC unroll 4
                    for (int a = 0; a < rows; a++)
                        lane[a * tokens + b] = vfmaq_f32(lane[a * tokens + b], weight[a], value);
                }
            }
        }
    }
#pragma GCC unroll 16
    for (int a = 0; a < rows * tokens; a++)
        acc[a] = lane[a];
}

/* The lanes of columns [begin, end), begin a multiple of 256: acc[quarter][row * tokens + token]. */
BT_NEON_INLINE void add_lanes(float32x4_t acc[4][MAX_SUMS], const uint8_t *const *w, const float *const *x,
                              int64_t begin, int64_t end, int rows, int tokens) {
    uint8_t buffer[4][BLOCK_BYTES];
    const uint8_t *padded[4];
    for (int h = 0; h < 4; h++)
        for (int a = 0; a < rows * tokens; a++)
            acc[h][a] = vdupq_n_f32(0.0f);
    while (begin < end) {
        const uint8_t *const *from = w;
        int64_t w_at = begin / 4, blocks = (end - begin) / BT_FLOAT_BLOCK;
        blocks = blocks > CHUNK ? CHUNK : blocks;
        if (blocks == 0) {
            for (int a = 0; a < rows; a++)
                padded[a] = bt_neon_pad(buffer[a], sizeof buffer[a], w[a], begin, end);
            from = padded;
            w_at = 0;
            blocks = 1;
        }
        for (int h = 0; h < 4; h++)
            walk(acc[h], from, w_at + 16 * h, x, begin + 4 * h, blocks, rows, tokens);
        begin += blocks * BT_FLOAT_BLOCK;
    }
}

/* The contract's tree over the quarters [h, h + width): the lanes of the other quarters are +0. */
BT_NEON_INLINE float add_tree(float32x4_t acc[4][MAX_SUMS], int at, int h, int width) {
    float32x4_t four = acc[h][at];
    if (width == 4)
        four = vaddq_f32(vaddq_f32(acc[0][at], acc[2][at]), vaddq_f32(acc[1][at], acc[3][at]));
    else if (width == 2)
        four = vaddq_f32(acc[h][at], acc[h + 1][at]);
    const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}

/* `width` quarters of a block are one group, or all four are part of a longer one. */
BT_NEON_INLINE void block(const bt_ternary_linear_packed *p, bt_tile t, int64_t i, int64_t r, int rows, int tokens) {
    const int width = p->group < p->k && p->group < BT_FLOAT_BLOCK ? (int)(p->group / BT_QUARTER) : 4;
    const int64_t span = p->group < BT_FLOAT_BLOCK ? BT_FLOAT_BLOCK : p->group;
    const uint8_t *w[4];
    const float *x[4];
    float sum[MAX_SUMS] = {0};
    for (int a = 0; a < rows; a++) /* past the last row: the last row again, not stored */
        w[a] = p->w + (r + a < t.n1 ? r + a : t.n1 - 1) * p->ldw;
    for (int b = 0; b < tokens; b++)
        x[b] = bt_packed_xp_row(p, i + b);
    for (int64_t begin = 0, g = 0; begin < p->k; begin += span) {
        const int64_t end = begin + span < p->k ? begin + span : p->k;
        float32x4_t acc[4][MAX_SUMS];
        add_lanes(acc, w, x, begin, end, rows, tokens);
        for (int h = 0; h < 4 && begin + BT_QUARTER * h < end; h += width, g++)
            for (int a = 0; a < rows && r + a < t.n1; a++)
                for (int b = 0; b < tokens; b++)
                    sum[a * tokens + b] += add_tree(acc, a * tokens + b, h, width) * p->scale[(r + a) * p->lds + g];
    }
    for (int a = 0; a < rows && r + a < t.n1; a++)
        for (int b = 0; b < tokens; b++)
            bt_finish(p->y, p->y_type, (i + b) * p->ldy + r + a, sum[a * tokens + b], p->bias, p->bias_type, r + a);
}

static void block_4x1(const bt_ternary_linear_packed *p, bt_tile t, int64_t i, int64_t r) {
    block(p, t, i, r, 4, 1);
}

static void block_2x4(const bt_ternary_linear_packed *p, bt_tile t, int64_t i, int64_t r) {
    block(p, t, i, r, 2, 4);
}

bt_status bt_ternary_linear_packed_neon(const bt_ternary_linear_packed *p, int64_t tile_begin, int64_t tile_end) {
    BT_ASSERT(p->xp_type == BT_F32 && p->ldxp % BT_FLOAT_BLOCK == 0);
    const int whole = p->group % BT_FLOAT_BLOCK == 0 || p->group >= p->k;
    if (!whole && p->group != BT_QUARTER && p->group != 2 * BT_QUARTER)
        return bt_ternary_linear_packed_scalar(p, tile_begin, tile_end);
    for (int64_t index = tile_begin; index < tile_end; index++) {
        const bt_tile t = bt_tile_at(p->m, p->n, index);
        int64_t i = t.m0;
        for (; i + 4 <= t.m1; i += 4)
            for (int64_t r = t.n0; r < t.n1; r += 2)
                block_2x4(p, t, i, r);
        for (; i < t.m1; i++)
            for (int64_t r = t.n0; r < t.n1; r += 4)
                block_4x1(p, t, i, r);
    }
    return BT_OK;
}
