/* ternary_unpack: 2-bit rows to dense values.
 *
 *   y[r][c] = cast(code(r, c) * scale[r * lds + c / group])      scale == NULL: y = cast(code)
 *
 * The product is one fp32 multiplication, then one cast to y_type. The scale addressing serves every granularity:
 * tensor lds = 0, group = k; channel lds = 1, group = k; group lds = k / group. A tile is a row. */
#ifndef BT_TERNARY_UNPACK_H
#define BT_TERNARY_UNPACK_H
#include "bt_common.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef struct bt_ternary_unpack {
    const uint8_t *w;   /* n rows of ceil(k/4), ldw bytes apart */
    const float *scale; /* NULL or as above; needs a floating y_type */
    void *y;            /* n rows of k, ldy elements apart */
    int64_t n, k, ldw, ldy, lds, group;
    int y_type;
    void *stream;
} bt_ternary_unpack;

typedef bt_status bt_ternary_unpack_fn(const bt_ternary_unpack *p, int64_t row_begin, int64_t row_end);

#define BT_TERNARY_UNPACK(X)                                                                                           \
    BT_ON_CUDA(X(ternary_unpack, BT_GPU, BT_FLOATS | BT_SET(BT_I8), cuda_baseline, 0))                                 \
    BT_ON_X86(X(ternary_unpack, BT_CPU, BT_FLOATS | BT_SET(BT_I8), avx512, BT_CPU_AVX512))                             \
    BT_ON_X86(X(ternary_unpack, BT_CPU, BT_FLOATS | BT_SET(BT_I8), avx2, BT_CPU_AVX2))                                 \
    BT_ON_ARM(X(ternary_unpack, BT_CPU, BT_FLOATS | BT_SET(BT_I8), neon, BT_CPU_NEON))                                 \
    X(ternary_unpack, BT_CPU, BT_FLOATS | BT_SET(BT_I8), scalar, 0)

BT_TERNARY_UNPACK(BT_DECLARE_KERNEL)

#ifdef __cplusplus
}
#endif
#endif
