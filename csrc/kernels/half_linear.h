/* half_linear: tokens times rows of float16 or bfloat16.
 *
 *   y[i][r] = cast( sum_c x[i][c] * (float)w[r][c] + bias[r] )
 *
 * Sums are fp32 in one order for every kernel: lane c % 32 adds its products in rising order of c, each by one fused
 * multiply-add; a row ends with zeros up to a multiple of 32. Then lanes j and j + 16, j and j + 8 .. j and j + 1 are
 * added. The bias is added in fp32. A tile is one of bt_tile_at(). */
#ifndef BT_HALF_LINEAR_H
#define BT_HALF_LINEAR_H
#include "bt_common.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef struct bt_half_linear {
    const float *x;    /* m rows of k, ldx elements apart */
    const uint16_t *w; /* n rows of k, ldw elements apart, of type w_type */
    const void *bias;  /* NULL, or [n] of type bias_type */
    void *y;           /* m rows of n, ldy elements apart, of type y_type */
    int64_t m, n, k, ldx, ldw, ldy;
    int w_type, bias_type, y_type; /* w_type: BT_F16 or BT_BF16 */
    void *stream;
} bt_half_linear;

typedef bt_status bt_half_linear_fn(const bt_half_linear *p, int64_t tile_begin, int64_t tile_end);

#define BT_HALVES (BT_SET(BT_F16) | BT_SET(BT_BF16))
#define BT_HALF_LINEAR(X)                                                                                              \
    BT_ON_X86(X(half_linear, BT_CPU, BT_HALVES, avx512, BT_CPU_AVX512))                                                \
    BT_ON_X86(X(half_linear, BT_CPU, BT_HALVES, avx2, BT_CPU_AVX2))                                                    \
    BT_ON_ARM(X(half_linear, BT_CPU, BT_HALVES, neon, BT_CPU_NEON))                                                    \
    X(half_linear, BT_CPU, BT_HALVES, scalar, 0)

BT_HALF_LINEAR(BT_DECLARE_KERNEL)

#ifdef __cplusplus
}
#endif
#endif
