/* The frame of half_linear on a CPU. The file that includes this defines before
 *   HALF_WIDTH   floats of a vector            HALF_TOKENS   tokens whose sums fit the registers together
 * and after it the vocabulary that is declared here. */
#ifndef BT_CPU_HALF_ROWS_H
#define BT_CPU_HALF_ROWS_H

#include "../half_linear.h"
#include "half.h"

#include <string.h>

#define HALF_INLINE static inline __attribute__((always_inline))

enum { HALF_LANES = 32, HALF_VECTORS = HALF_LANES / HALF_WIDTH, HALF_AHEAD = 4096 };

HALF_INLINE half_vector half_zeros(void);
HALF_INLINE half_vector half_widened(const uint16_t *from, int type);
HALF_INLINE half_vector half_floats(const float *from);
HALF_INLINE half_vector half_fused(half_vector a, half_vector b, half_vector c); /* a * b + c, rounded once */
HALF_INLINE void half_store(float *to, half_vector v);

/* Adds the products of columns [0, end), a multiple of HALF_LANES, to the sums of `tokens` tokens. */
HALF_INLINE void half_add(half_vector sum[HALF_TOKENS][HALF_VECTORS], const uint16_t *w, int type, const float *x,
                          int64_t ldx, int64_t end, const int tokens) {
    for (int64_t c = 0; c < end; c += HALF_LANES) {
        __builtin_prefetch((const void *)((uintptr_t)(w + c) + HALF_AHEAD), 0, 3); /* the rows that follow, too */
#pragma GCC unroll 8
        for (int v = 0; v < HALF_VECTORS; v++) {
            const half_vector weight = half_widened(w + c + v * HALF_WIDTH, type);
#pragma GCC unroll 8
            for (int i = 0; i < tokens; i++)
                sum[i][v] = half_fused(weight, half_floats(x + i * ldx + c + v * HALF_WIDTH), sum[i][v]);
        }
    }
}

HALF_INLINE float half_tree(const half_vector *sum) {
    float lanes[HALF_LANES];
#pragma GCC unroll 8
    for (int v = 0; v < HALF_VECTORS; v++)
        half_store(lanes + v * HALF_WIDTH, sum[v]);
    for (int width = HALF_LANES / 2; width > 0; width /= 2)
        for (int j = 0; j < width; j++)
            lanes[j] += lanes[j + width];
    return lanes[0];
}

/* The last columns of a row and of its tokens, followed by zeros. */
static __attribute__((noinline)) void half_tail(half_vector sum[HALF_TOKENS][HALF_VECTORS], const uint16_t *w, int type,
                                                const float *x, int64_t ldx, int64_t count, int tokens) {
    uint16_t row[HALF_LANES] = {0};
    memcpy(row, w, (size_t)count * sizeof *row);
    for (int i = 0; i < tokens; i++) {
        float token[HALF_LANES] = {0};
        memcpy(token, x + i * ldx, (size_t)count * sizeof *token);
        for (int v = 0; v < HALF_VECTORS; v++)
            sum[i][v] =
                half_fused(half_widened(row + v * HALF_WIDTH, type), half_floats(token + v * HALF_WIDTH), sum[i][v]);
    }
}

/* Row `row` by `tokens` tokens from `token` on. */
HALF_INLINE void half_row(const bt_half_linear *p, int64_t row, int64_t token, int type, const int tokens) {
    const uint16_t *const w = p->w + row * p->ldw;
    const float *const x = p->x + token * p->ldx;
    const int64_t whole = p->k / HALF_LANES * HALF_LANES;
    half_vector sum[HALF_TOKENS][HALF_VECTORS];
#pragma GCC unroll 8
    for (int i = 0; i < tokens; i++)
#pragma GCC unroll 8
        for (int v = 0; v < HALF_VECTORS; v++)
            sum[i][v] = half_zeros();
    half_add(sum, w, type, x, p->ldx, whole, tokens);
    if (whole < p->k) {
        half_vector copy[HALF_TOKENS][HALF_VECTORS]; /* in memory, while those of the loop stay in registers */
        memcpy(copy, sum, sizeof copy);
        half_tail(copy, w + whole, type, x + whole, p->ldx, p->k - whole, tokens);
        memcpy(sum, copy, sizeof copy);
    }
    for (int i = 0; i < tokens; i++)
        bt_finish(p->y, p->y_type, (token + i) * p->ldy + row, half_tree(sum[i]), p->bias, p->bias_type, row);
}

HALF_INLINE void half_tiles(const bt_half_linear *p, int64_t tile_begin, int64_t tile_end, const int type) {
    for (int64_t tile = tile_begin; tile < tile_end; tile++) {
        const bt_tile t = bt_tile_at(p->m, p->n, tile);
        for (int64_t row = t.n0; row < t.n1; row++) {
            int64_t token = t.m0;
            for (; token + HALF_TOKENS <= t.m1; token += HALF_TOKENS)
                half_row(p, row, token, type, HALF_TOKENS);
            for (; token < t.m1; token++)
                half_row(p, row, token, type, 1);
        }
    }
}

HALF_INLINE bt_status half_linear(const bt_half_linear *p, int64_t tile_begin, int64_t tile_end) {
    if (p->w_type == BT_F16)
        half_tiles(p, tile_begin, tile_end, BT_F16);
    else
        half_tiles(p, tile_begin, tile_end, BT_BF16);
    return BT_OK;
}

#endif
