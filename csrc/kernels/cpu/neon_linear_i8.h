/* linear_i8 on NEON: rows of bytes in the walk and with the epilogue of the other int8 products. The file that includes
 * this defines `dot`, the products of 16 bytes added to four lanes. */
#ifndef BT_CPU_NEON_LINEAR_I8_H
#define BT_CPU_NEON_LINEAR_I8_H

#include "int8_views.h"
#include "neon.h"

enum { VECTOR = 16, LINE = 64, AHEAD = 1024 };

BT_NEON_INLINE int32x4_t dot(int32x4_t acc, int8x16_t w, int8x16_t q);

BT_NEON_INLINE void add_vector(int32x4_t *acc, const uint8_t *const *w, const int8_t *const *q, int64_t at, int rows,
                               int tokens) {
#pragma GCC unroll 4
    for (int a = 0; a < rows; a++) {
        const int8x16_t weights = vld1q_s8((const int8_t *)w[a] + at);
#pragma GCC unroll 4
        for (int b = 0; b < tokens; b++)
            acc[4 * a + b] = dot(acc[4 * a + b], weights, vld1q_s8(q[b] + at));
    }
}

/* The last columns, followed by zeros. */
static BT_NOINLINE void add_rest(int32x4_t *acc, const uint8_t *const *w, const int8_t *const *q, int64_t begin,
                                 int64_t end, int rows, int tokens) {
    uint8_t w_rest[4][VECTOR] = {{0}};
    int8_t q_rest[4][VECTOR] = {{0}};
    for (int a = 0; a < rows; a++)
        memcpy(w_rest[a], w[a] + begin, (size_t)(end - begin));
    for (int b = 0; b < tokens; b++)
        memcpy(q_rest[b], q[b] + begin, (size_t)(end - begin));
    for (int a = 0; a < rows; a++)
        for (int b = 0; b < tokens; b++)
            acc[4 * a + b] = dot(acc[4 * a + b], vld1q_s8((const int8_t *)w_rest[a]), vld1q_s8(q_rest[b]));
}

BT_NEON_INLINE void dots(const uint8_t *const *w, const int8_t *const *q, int64_t begin, int64_t end, int32_t *out,
                         int rows, int tokens) {
    const int64_t whole = end / VECTOR * VECTOR; /* begin is 0 */
    int32x4_t acc[16];
#pragma GCC unroll 16
    for (int a = 0; a < 16; a++)
        acc[a] = vdupq_n_s32(0);
    int64_t at = begin;
    for (; at + LINE <= whole; at += LINE) {
#pragma GCC unroll 4
        for (int a = 0; a < rows; a++)
            __builtin_prefetch((const void *)((uintptr_t)(w[a] + at) + AHEAD), 0, 3);
#pragma GCC unroll 4
        for (int i = 0; i < LINE; i += VECTOR)
            add_vector(acc, w, q, at + i, rows, tokens);
    }
    for (; at < whole; at += VECTOR)
        add_vector(acc, w, q, at, rows, tokens);
    if (whole < end) {
        int32x4_t copy[16]; /* in memory, while those of the loop stay in registers */
        memcpy(copy, acc, sizeof copy);
        add_rest(copy, w, q, whole, end, rows, tokens);
        memcpy(acc, copy, sizeof acc);
    }
    bt_neon_add_lanes(out, acc, rows, tokens);
}

BT_NEON_DOTS(4, 1)
BT_NEON_DOTS(2, 4)

BT_NEON_INLINE bt_status linear_i8(const bt_linear_i8 *p, int64_t tile_begin, int64_t tile_end) {
    BT_ASSERT(p->k <= BT_I8_MAX_K);
    const bt_neon_shape shapes[] = {{2, 4, dots_2x4}, {4, 1, dots_4x1}};
    const bt_ternary_linear_w2a8 rows = bt_i8_view(p);
    for (int64_t index = tile_begin; index < tile_end; index++)
        bt_neon_tile(&rows, bt_tile_at(p->m, p->n, index), shapes, 2);
    return BT_OK;
}

#endif
