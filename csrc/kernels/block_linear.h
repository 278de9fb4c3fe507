/* block_linear: tokens times rows of quantised blocks.
 *
 *   y[i][r] = sum_c x[i][c] * w[r][c]        w as block_unpack decodes it to fp32
 *
 * Sums are fp32 in one order for every kernel: lane c % 32 adds its products in rising order of c, each product rounded
 * before it is added; then lanes j and j + 16, j and j + 8 .. j and j + 1 are added. A tile is one of bt_tile_at(). */
#ifndef BT_BLOCK_LINEAR_H
#define BT_BLOCK_LINEAR_H
#include "block_unpack.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef struct bt_block_linear {
    const float *x;   /* m rows of k, ldx elements apart */
    const uint8_t *w; /* n rows of blocks, ldw bytes apart */
    float *y;         /* m rows of n, ldy elements apart */
    int64_t m, n, k, ldx, ldw, ldy;
    int block; /* BT_BLOCK_* */
    void *stream;
} bt_block_linear;

typedef bt_status bt_block_linear_fn(const bt_block_linear *p, int64_t tile_begin, int64_t tile_end);

#define BT_BLOCK_LINEAR(X)                                                                                             \
    BT_ON_X86(X(block_linear, BT_CPU, BT_SET(BT_F32), avx512, BT_CPU_AVX512))                                          \
    BT_ON_X86(X(block_linear, BT_CPU, BT_SET(BT_F32), avx2, BT_CPU_AVX2))                                              \
    BT_ON_ARM(X(block_linear, BT_CPU, BT_SET(BT_F32), neon, BT_CPU_NEON))                                              \
    X(block_linear, BT_CPU, BT_SET(BT_F32), scalar, 0)

BT_BLOCK_LINEAR(BT_DECLARE_KERNEL)

#ifdef __cplusplus
}
#endif
#endif
