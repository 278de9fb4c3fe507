/* hadamard: a Walsh-Hadamard transform of each block of n columns.
 *
 *   y[i][b n + r] = cast( after[b n + r] * fl( h_r * fl(1 / sqrt(n)) ) )
 *   h_r = sum_c (-1)^popcount(r & c) * before[b n + c] * x[i][b n + c]         r, c in [0, n), n a power of two
 *
 * The sums are fp32 in one order for every kernel: for width = n / 2, n / 4 .. 1, v[j] and v[j + width] of each run of
 * 2 width values become v[j] + v[j + width] and v[j] - v[j + width]. Wide steps come first, so that a part of a block
 * can be computed from all of x without the rest. `before` and `after` are NULL or signs, 1 or -1; another value gives
 * NaN in its column, and so in its block. A tile is a block: tile i * (k / n) + b. */
#ifndef BT_HADAMARD_H
#define BT_HADAMARD_H
#include "bt_common.h"

#include <math.h>
#ifdef __cplusplus
extern "C" {
#endif

enum { BT_HADAMARD_MAX = 1 << 15 };

typedef struct bt_hadamard {
    const void *x;                /* m rows of k, ldx elements apart */
    const int8_t *before, *after; /* NULL or [k] */
    void *y;                      /* m rows of k, ldy elements apart; not x */
    int64_t m, k, n, ldx, ldy;    /* n divides k, up to BT_HADAMARD_MAX */
    int type;                     /* of x and y */
    void *stream;
} bt_hadamard;

typedef bt_status bt_hadamard_fn(const bt_hadamard *p, int64_t tile_begin, int64_t tile_end);

static inline int64_t bt_hadamard_tiles(const bt_hadamard *p) {
    return p->m * (p->k / p->n);
}

static inline float bt_hadamard_factor(int64_t n) {
    return (float)(1.0 / sqrt((double)n));
}

#define BT_HADAMARD(X)                                                                                                 \
    BT_ON_CUDA(X(hadamard, BT_GPU, BT_FLOATS, cuda_baseline, 0))                                                       \
    BT_ON_X86(X(hadamard, BT_CPU, BT_FLOATS, avx512, BT_CPU_AVX512))                                                   \
    BT_ON_X86(X(hadamard, BT_CPU, BT_FLOATS, avx2, BT_CPU_AVX2))                                                       \
    BT_ON_ARM(X(hadamard, BT_CPU, BT_FLOATS, neon, BT_CPU_NEON))                                                       \
    X(hadamard, BT_CPU, BT_FLOATS, scalar, 0)

BT_HADAMARD(BT_DECLARE_KERNEL)

#ifdef __cplusplus
}
#endif
#endif
