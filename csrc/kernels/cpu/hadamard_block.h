/* The frame of hadamard on a CPU: a block is widened into a buffer, transformed there, and stored.
 *
 * Steps of width 16 and more are plain loops, which compilers vectorise with the instructions of the file that includes
 * this; two widths are taken in one pass over the block. A variant brings the others, `narrow`. */
#ifndef BT_CPU_HADAMARD_BLOCK_H
#define BT_CPU_HADAMARD_BLOCK_H

#include "../hadamard.h"
#include "half.h"

enum { BT_HADAMARD_NARROW = 16 };

/* The widths 8 .. 1 of runs of 16 values. */
typedef void bt_hadamard_narrow(float *v, int64_t n);

/* One width. */
static inline void bt_hadamard_step(float *v, int64_t n, int64_t width) {
    for (int64_t run = 0; run < n; run += 2 * width)
        for (int64_t j = run; j < run + width; j++) {
            const float a = v[j], b = v[j + width];
            v[j] = a + b;
            v[j + width] = a - b;
        }
}

/* The widths 2 width and width. */
static inline void bt_hadamard_two_steps(float *restrict v, int64_t n, int64_t width) {
    for (int64_t run = 0; run < n; run += 4 * width) {
        float *restrict const v0 = v + run, *restrict const v1 = v0 + width;
        float *restrict const v2 = v1 + width, *restrict const v3 = v2 + width;
        for (int64_t j = 0; j < width; j++) {
            const float a = v0[j] + v2[j], b = v1[j] + v3[j], c = v0[j] - v2[j], d = v1[j] - v3[j];
            v0[j] = a + b;
            v1[j] = a - b;
            v2[j] = c + d;
            v3[j] = c - d;
        }
    }
}

static inline __attribute__((always_inline)) void bt_hadamard_transform(float *v, int64_t n,
                                                                        bt_hadamard_narrow *narrow) {
    int64_t width = n / 2;
    for (; width >= 2 * BT_HADAMARD_NARROW; width /= 4)
        bt_hadamard_two_steps(v, n, width / 2);
    if (n >= BT_HADAMARD_NARROW) {
        if (width == BT_HADAMARD_NARROW)
            bt_hadamard_step(v, n, width);
        narrow(v, n);
        return;
    }
    for (; width > 0; width /= 2)
        bt_hadamard_step(v, n, width);
}

static inline void bt_hadamard_sign(float *v, const int8_t *sign, int64_t n) {
    for (int64_t c = 0; sign && c < n; c++)
        v[c] = sign[c] == 1 ? v[c] : sign[c] == -1 ? -v[c] : NAN;
}

static inline __attribute__((always_inline)) bt_status bt_hadamard_blocks(const bt_hadamard *p, int64_t tile_begin,
                                                                          int64_t tile_end,
                                                                          bt_hadamard_narrow *narrow) {
    float v[BT_HADAMARD_MAX] __attribute__((aligned(64)));
    const int64_t n = p->n, across = p->k / n;
    const float factor = bt_hadamard_factor(n);
    BT_ASSERT(n > 0 && n <= BT_HADAMARD_MAX && (n & (n - 1)) == 0 && p->k % n == 0);
    for (int64_t tile = tile_begin; tile < tile_end; tile++) {
        const int64_t row = tile / across, column = tile % across * n;
        bt_load_many(p->x, p->type, row * p->ldx + column, n, v);
        bt_hadamard_sign(v, p->before ? p->before + column : NULL, n);
        bt_hadamard_transform(v, n, narrow);
        for (int64_t c = 0; c < n; c++)
            v[c] *= factor;
        bt_hadamard_sign(v, p->after ? p->after + column : NULL, n);
        bt_store_many(p->y, p->type, row * p->ldy + column, n, v);
    }
    return BT_OK;
}

#endif
