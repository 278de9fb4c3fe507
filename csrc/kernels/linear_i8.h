/* linear_i8: tokens in int8 digits times rows of int8 with one scale each, exact in integers.
 *
 *   digits = 1   y[i][r] = cast( fl( (float)acc(i, r) * fl(q_scale[i] * scale[r]) ) + bias[r] )
 *   digits > 1   y[i][r] = cast( (float)( ((double)acc(i, r) * q_step[i]) * (double)scale[r] ) + bias[r] )
 *                acc = a0 + 256 a1 (+ 65536 a2), where a_d is the product with row digits * i + d of q
 *
 * The epilogue of ternary_linear_w2a8 with one scale a row: every variant, batch, tile and thread count gives the same
 * bits. q comes from act_quantize in natural order. k <= BT_I8_MAX_K keeps 255 * 128 * k, the largest partial sum of a
 * variant that works on codes plus 128, inside int32. */
#ifndef BT_LINEAR_I8_H
#define BT_LINEAR_I8_H
#include "bt_common.h"
#ifdef __cplusplus
extern "C" {
#endif

enum { BT_I8_MAX_K = 1 << 16 };

typedef struct bt_linear_i8 {
    const int8_t *q;      /* digits * m rows of k, ldq bytes apart */
    const float *q_scale; /* [m], with one digit */
    const double *q_step; /* [m], with more digits */
    const int32_t *q_sum; /* [digits * m], the sum of a row of q */
    const int8_t *w;      /* n rows of k, ldw bytes apart */
    const float *scale;   /* [n] */
    const void *bias;     /* NULL, or [n] of type bias_type */
    void *y;              /* m rows of n, ldy elements apart, of type y_type */
    int64_t m, n, k, ldq, ldw, ldy;
    int y_type, bias_type, digits;
    void *stream;
} bt_linear_i8;

typedef bt_status bt_linear_i8_fn(const bt_linear_i8 *p, int64_t tile_begin, int64_t tile_end);

#define BT_LINEAR_I8(X)                                                                                                \
    BT_ON_X86(X(linear_i8, BT_CPU, BT_SET(BT_I8), avx512vnni, BT_CPU_AVX512VNNI))                                      \
    BT_ON_X86(X(linear_i8, BT_CPU, BT_SET(BT_I8), avxvnni, BT_CPU_AVXVNNI))                                            \
    BT_ON_X86(X(linear_i8, BT_CPU, BT_SET(BT_I8), avx2, BT_CPU_AVX2))                                                  \
    BT_ON_ARM(X(linear_i8, BT_CPU, BT_SET(BT_I8), neondot, BT_CPU_NEONDOT))                                            \
    BT_ON_ARM(X(linear_i8, BT_CPU, BT_SET(BT_I8), neon, BT_CPU_NEON))                                                  \
    X(linear_i8, BT_CPU, BT_SET(BT_I8), scalar, 0)

BT_LINEAR_I8(BT_DECLARE_KERNEL)

#ifdef __cplusplus
}
#endif
#endif
