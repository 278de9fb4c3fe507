/* Vocabulary that the NEON kernels share, and the walk over the tiles of a product in int8.
 *
 *   quarter: 16 packed bytes, 64 columns. Byte j holds columns 4j .. 4j + 3; in planes they meet 16 bytes of q each, at
 *            256 (c / 256) + 64 plane + 16 (c / 64 % 4)      for a quarter that begins at column c */
#ifndef BT_CPU_NEON_H
#define BT_CPU_NEON_H

#include "../ternary_linear_w2a8.h"
#include "half.h"

#include <arm_neon.h>
#include <string.h>

#define BT_NEON_INLINE static inline __attribute__((always_inline))
/* Keeps a hot loop in a function of its own, with all registers. */
#define BT_NOINLINE __attribute__((noinline))

enum { BT_QUARTER = 64, BT_QUARTER_BYTES = 16 };

BT_NEON_INLINE float32x4_t bt_neon_load4(const void *x, int type, int64_t at) {
    if (type == BT_F32)
        return vld1q_f32((const float *)x + at);
    const uint16x4_t half = vld1_u16((const uint16_t *)x + at);
    if (type == BT_BF16)
        return vreinterpretq_f32_u32(vshll_n_u16(half, 16));
    return vcvt_f32_f16(vreinterpret_f16_u16(half));
}

/* Four planes of {-1, 0, +1}, looked up by nibble: two codes select the trit of the lower or of the upper one. */
BT_NEON_INLINE int8x16x4_t bt_neon_trits(uint8x16_t packed) {
    const int8x16_t lower = {0, 1, -1, 0, 0, 1, -1, 0, 0, 1, -1, 0, 0, 1, -1, 0};
    const int8x16_t upper = {0, 0, 0, 0, 1, 1, 1, 1, -1, -1, -1, -1, 0, 0, 0, 0};
    const uint8x16_t low = vandq_u8(packed, vdupq_n_u8(15));
    const uint8x16_t high = vshrq_n_u8(packed, 4);
    const int8x16x4_t trits = {
        {vqtbl1q_s8(lower, low), vqtbl1q_s8(upper, low), vqtbl1q_s8(lower, high), vqtbl1q_s8(upper, high)}};
    return trits;
}

/* Where q in planes holds column c, a multiple of 64; and the same for the next quarter. */
BT_NEON_INLINE int64_t bt_neon_plane_at(int64_t c) {
    return c / 256 * 256 + c % 256 / 4;
}

BT_NEON_INLINE int64_t bt_neon_plane_next(int64_t at) {
    return at + ((at & 48) == 48 ? 208 : 16);
}

/* Copies the last bytes of a row, those of columns [begin, end), into a zeroed buffer. */
BT_NEON_INLINE const uint8_t *bt_neon_pad(uint8_t *buffer, size_t size, const uint8_t *row, int64_t begin,
                                          int64_t end) {
    memset(buffer, 0, size);
    memcpy(buffer, row + begin / 4, (size_t)bt_div_up(end - begin, 4));
    return buffer;
}

/* acc[4 * row + token] = the dot product of a row of w and a token of q over columns [begin, end), begin a multiple of
 * 64; end is one too, or k. */
typedef void bt_neon_dots(const uint8_t *const *w, const int8_t *const *q, int64_t begin, int64_t end, int32_t *acc);

/* The sums over groups of a block of rows x tokens, for one digit a token and for more: sum[4 * row + token]. */
BT_NEON_INLINE void bt_neon_sum_codes(const bt_ternary_linear_w2a8 *p, const uint8_t *const *w, int64_t i, int64_t r,
                                      int rows, int tokens, bt_neon_dots *dots, float *sum) {
    const int8_t *q[4];
    for (int b = 0; b < tokens; b++)
        q[b] = p->q + (i + b) * p->ldq;
    for (int64_t begin = 0, g = 0; begin < p->k; begin += p->group, g++) {
        int32_t acc[16] = {0}; /* of fewer rows or tokens not all are set */
        dots(w, q, begin, begin + p->group, acc);
        for (int a = 0; a < rows; a++)
            for (int b = 0; b < tokens; b++)
                sum[4 * a + b] += (float)acc[4 * a + b] * (p->q_scale[i + b] * p->scale[(r + a) * p->lds + g]);
    }
}

/* `tokens` tokens whose digits are the four rows of q that `dots` takes, the last of them again where there are less.
 */
BT_NEON_INLINE void bt_neon_sum_digits(const bt_ternary_linear_w2a8 *p, const uint8_t *const *w, int64_t i, int64_t r,
                                       int rows, int tokens, bt_neon_dots *dots, float *sum) {
    const int8_t *q[4];
    double wide_sum[16] = {0};
    for (int b = 0; b < 4; b++)
        q[b] = p->q + (p->digits * i + (b < p->digits * tokens ? b : p->digits * tokens - 1)) * p->ldq;
    for (int64_t begin = 0, g = 0; begin < p->k; begin += p->group, g++) {
        int32_t acc[16];
        dots(w, q, begin, begin + p->group, acc);
        for (int a = 0; a < rows; a++)
            for (int b = 0; b < tokens; b++) {
                int64_t joined = 0;
                for (int d = p->digits - 1; d >= 0; d--)
                    joined = 256 * joined + acc[4 * a + p->digits * b + d];
                wide_sum[4 * a + b] += ((double)joined * p->q_step[i + b]) * (double)p->scale[(r + a) * p->lds + g];
            }
    }
    for (int a = 0; a < rows; a++)
        for (int b = 0; b < tokens; b++)
            sum[4 * a + b] = (float)wide_sum[4 * a + b];
}

BT_NEON_INLINE void bt_neon_w2a8_block(const bt_ternary_linear_w2a8 *p, bt_tile t, int64_t i, int64_t r, int rows,
                                       int tokens, bt_neon_dots *dots) {
    const uint8_t *w[4];
    const int here = t.n1 - r < rows ? (int)(t.n1 - r) : rows;
    float sum[16] = {0};
    for (int a = 0; a < rows; a++) /* past the last row: the last row again, not stored */
        w[a] = p->w + (r + (a < here ? a : here - 1)) * p->ldw;
    if (p->digits == 1)
        bt_neon_sum_codes(p, w, i, r, here, tokens, dots, sum);
    else
        bt_neon_sum_digits(p, w, i, r, here, tokens, dots, sum);
    for (int a = 0; a < here; a++)
        for (int b = 0; b < tokens; b++)
            bt_finish(p->y, p->y_type, (i + b) * p->ldy + r + a, sum[4 * a + b], p->bias, p->bias_type, r + a);
}

/* Four rows x one token by sdot, in ternary_linear_w2a8_neondot.c; needs BT_CPU_NEONDOT. */
bt_neon_dots bt_neondot_4x1;

typedef struct bt_neon_shape {
    int rows, tokens;
    bt_neon_dots *dots;
} bt_neon_shape;

/* Blocks of the shapes in turn, each on the tokens that those before it left; the last shape has one token. The first
 * has four, which are two tokens of two digits or one of three. */
BT_NEON_INLINE void bt_neon_tile(const bt_ternary_linear_w2a8 *p, bt_tile t, const bt_neon_shape *shapes, int count) {
    int64_t i = t.m0;
    for (int here; p->digits > 1 && i < t.m1; i += here) {
        here = p->digits == 2 && i + 2 <= t.m1 ? 2 : 1;
        for (int64_t r = t.n0; r < t.n1; r += shapes->rows)
            bt_neon_w2a8_block(p, t, i, r, shapes->rows, here, shapes->dots);
    }
#pragma GCC unroll 3
    for (const bt_neon_shape *s = shapes; s < shapes + count; s++)
        for (; i + s->tokens <= t.m1; i += s->tokens)
            for (int64_t r = t.n0; r < t.n1; r += s->rows)
                bt_neon_w2a8_block(p, t, i, r, s->rows, s->tokens, s->dots);
}

BT_NEON_INLINE bt_status bt_neon_w2a8(const bt_ternary_linear_w2a8 *p, int64_t tile_begin, int64_t tile_end,
                                      const bt_neon_shape *shapes, int count) {
    BT_ASSERT(p->ldq % 256 == 0 && p->k <= BT_W2A8_MAX_K);
    if (p->group % BT_QUARTER != 0 && p->group < p->k)
        return bt_ternary_linear_w2a8_scalar(p, tile_begin, tile_end);
    for (int64_t index = tile_begin; index < tile_end; index++)
        bt_neon_tile(p, bt_tile_at(p->m, p->n, index), shapes, count);
    return BT_OK;
}

/* Adds the products of the whole quarters of columns [begin, end) to acc; w_at is where w holds column begin. */
typedef void bt_neon_add(int32x4_t *acc, const uint8_t *const *w, int64_t w_at, const int8_t *const *q, int64_t begin,
                         int64_t end, int rows, int tokens);

/* Sets acc to the products of columns [begin, end) as bt_neon_dots has them, in lanes that `add` chooses. */
BT_NEON_INLINE void bt_neon_sum(int32x4_t *acc, const uint8_t *const *w, const int8_t *const *q, int64_t begin,
                                int64_t end, int rows, int tokens, bt_neon_add *add) {
    const int64_t whole = begin + (end - begin) / BT_QUARTER * BT_QUARTER;
#pragma GCC unroll 16
    for (int a = 0; a < 16; a++)
        acc[a] = vdupq_n_s32(0);
    add(acc, w, begin / 4, q, begin, whole, rows, tokens);
    if (whole < end) {
        uint8_t buffer[4][BT_QUARTER_BYTES];
        const uint8_t *padded[4];
        for (int a = 0; a < rows; a++)
            padded[a] = bt_neon_pad(buffer[a], sizeof buffer[a], w[a], whole, end);
        add(acc, padded, 0, q, whole, whole + BT_QUARTER, rows, tokens);
    }
}

/* Where acc[4 * row + token] holds the products of a row and a token. */
BT_NEON_INLINE void bt_neon_add_lanes(int32_t *out, const int32x4_t *acc, int rows, int tokens) {
#pragma GCC unroll 4
    for (int a = 0; a < rows; a++)
#pragma GCC unroll 4
        for (int b = 0; b < tokens; b++)
            out[4 * a + b] = vaddvq_s32(acc[4 * a + b]);
}

/* The bt_neon_dots of one block shape, from a `dots` that takes the shape as arguments. */
#define BT_NEON_DOTS(rows, tokens)                                                                                     \
    static BT_NOINLINE void dots_##rows##x##tokens(const uint8_t *const *w, const int8_t *const *q, int64_t begin,     \
                                                   int64_t end, int32_t *out) {                                        \
        dots(w, q, begin, end, out, rows, tokens);                                                                     \
    }

#endif
