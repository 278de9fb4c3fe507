/* bitplane_matmul: products of rows of trits, in the planes of bitplane_pack.
 *
 *   y[i][j] = sum_c a[i][c] * b[j][c] = popcount(m) - 2 popcount(m & (sign_a ^ sign_b)),   m = magnitude_a &
 * magnitude_b
 *
 * Exact: fewer than 2^31 columns. Tiles are those of bt_tile_at(m, n, index). */
#ifndef BT_BITPLANE_MATMUL_H
#define BT_BITPLANE_MATMUL_H
#include "bt_common.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef struct bt_bitplane_matmul {
    const uint8_t *a, *b; /* m and n rows of `blocks` blocks, lda and ldb bytes apart */
    int32_t *y;           /* m rows of n, ldy elements apart */
    int64_t m, n, blocks, lda, ldb, ldy;
    void *stream;
} bt_bitplane_matmul;

typedef bt_status bt_bitplane_matmul_fn(const bt_bitplane_matmul *p, int64_t tile_begin, int64_t tile_end);

#define BT_BITPLANE_MATMUL(X)                                                                                          \
    BT_ON_CUDA(X(bitplane_matmul, BT_GPU, BT_SET(BT_I8), cuda_baseline, 0))                                            \
    BT_ON_X86(X(bitplane_matmul, BT_CPU, BT_SET(BT_I8), avx512popcnt, BT_CPU_AVX512POPCNT))                            \
    BT_ON_X86(X(bitplane_matmul, BT_CPU, BT_SET(BT_I8), avx512, BT_CPU_AVX512))                                        \
    BT_ON_X86(X(bitplane_matmul, BT_CPU, BT_SET(BT_I8), avx2, BT_CPU_AVX2))                                            \
    BT_ON_ARM(X(bitplane_matmul, BT_CPU, BT_SET(BT_I8), neon, BT_CPU_NEON))                                            \
    X(bitplane_matmul, BT_CPU, BT_SET(BT_I8), scalar, 0)

BT_BITPLANE_MATMUL(BT_DECLARE_KERNEL)

#ifdef __cplusplus
}
#endif
#endif
