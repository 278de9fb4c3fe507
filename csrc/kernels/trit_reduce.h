/* trit_reduce: how many trits of a row, or products of the trits of two rows, are +1 and how many are -1.
 *
 *   counts[tile][0] = |{c : v[c] = +1}|,  counts[tile][1] = |{c : v[c] = -1}|,   v[c] = a[r][c], or a[r][c] * b[r][c]
 *
 * A sum and a dot product are the first less the second, a sum of magnitudes is both together, zeros are the rest.
 * Padding does not count, whatever it is. `lda = 0` or `ldb = 0` takes one row for all. A tile is BT_REDUCE_CHUNK bytes
 * of a row, or what is left of it: tile = row * chunks of a row + chunk. */
#ifndef BT_TRIT_REDUCE_H
#define BT_TRIT_REDUCE_H
#include "bt_common.h"
#ifdef __cplusplus
extern "C" {
#endif

enum { BT_REDUCE_CHUNK = 1 << 16 };

typedef struct bt_trit_reduce {
    const uint8_t *a, *b; /* n rows of ceil(k/4), lda and ldb bytes apart; b may be NULL */
    int64_t *counts;      /* two a tile */
    int64_t n, k, lda, ldb;
    void *stream;
} bt_trit_reduce;

typedef bt_status bt_trit_reduce_fn(const bt_trit_reduce *p, int64_t tile_begin, int64_t tile_end);

/* One even for an empty row, whose counts are zero. */
BT_INLINE int64_t bt_reduce_chunks(int64_t k) {
    return k == 0 ? 1 : bt_div_up(bt_div_up(k, 4), BT_REDUCE_CHUNK);
}

#define BT_TRIT_REDUCE(X)                                                                                              \
    BT_ON_CUDA(X(trit_reduce, BT_GPU, BT_SET(BT_I8), cuda_baseline, 0))                                                \
    BT_ON_X86(X(trit_reduce, BT_CPU, BT_SET(BT_I8), avx512popcnt, BT_CPU_AVX512POPCNT))                                \
    BT_ON_X86(X(trit_reduce, BT_CPU, BT_SET(BT_I8), avx512, BT_CPU_AVX512))                                            \
    BT_ON_X86(X(trit_reduce, BT_CPU, BT_SET(BT_I8), avx2, BT_CPU_AVX2))                                                \
    BT_ON_ARM(X(trit_reduce, BT_CPU, BT_SET(BT_I8), neon, BT_CPU_NEON))                                                \
    X(trit_reduce, BT_CPU, BT_SET(BT_I8), scalar, 0)

BT_TRIT_REDUCE(BT_DECLARE_KERNEL)

#ifdef __cplusplus
}
#endif
#endif
