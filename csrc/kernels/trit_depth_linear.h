/* trit_depth_linear: tokens in int8 digits times rows of integers that are stored as planes of trits.
 *
 *   c[r][k] = sum_i 3^i trit_i[r][k]     i < depth <= 5, so |c| <= 121
 *   digits = 1   y[i][r] = cast( sum_g fl( (float)acc_g(i, r) * fl(q_scale[i] * scale[r * lds + g]) ) + bias[r] )
 *   digits > 1   y[i][r] = cast( (float)( sum_g ((double)acc_g(i, r) * q_step[i]) * (double)scale[r * lds + g] ) +
 *                bias[r] )     acc = a0 + 256 a1 (+ 65536 a2), where a_d is the product of c with row digits * i + d of
 * q
 *
 * The epilogue of ternary_linear_w2a8, of whose terms the planes share one: all variants, batches, tiles and thread
 * counts give the same bits. Planes hold codes as ternary_pack makes them. group and lds as there. q comes from
 * act_quantize in planes of activations, and columns past k are zeros in it. k <= BT_I8_MAX_K as of linear_i8.
 *
 * A kernel decodes BT_DEPTH_ROWS rows at a time into `memory`: bt_trit_depth_memory() bytes for each that calls it. */
#ifndef BT_TRIT_DEPTH_LINEAR_H
#define BT_TRIT_DEPTH_LINEAR_H
#include "act_quantize.h"
#include "linear_i8.h"
#ifdef __cplusplus
extern "C" {
#endif

enum { BT_MAX_DEPTH = 5, BT_DEPTH_ROWS = 4 };

typedef struct bt_trit_depth_linear {
    const int8_t *q;      /* digits * m rows, ldq bytes apart, zero padded to a multiple of 256 */
    const float *q_scale; /* [m], with one digit */
    const double *q_step; /* [m], with more digits */
    const int32_t *q_sum; /* [digits * m], the sum of a row of q */
    const uint8_t *w;     /* plane i: n rows of ceil(k/4), ldw bytes apart, from w + i * plane on */
    const float *scale;   /* of the lowest plane */
    const void *bias;     /* NULL, or [n] of type bias_type */
    void *y;              /* m rows of n, ldy elements apart, of type y_type */
    int64_t m, n, k, ldq, ldw, plane, ldy, lds, group;
    int y_type, bias_type, digits, depth;
    void *memory;
    void *stream;
} bt_trit_depth_linear;

typedef bt_status bt_trit_depth_linear_fn(const bt_trit_depth_linear *p, int64_t tile_begin, int64_t tile_end);

BT_INLINE int64_t bt_trit_depth_memory(int64_t k) {
    return BT_DEPTH_ROWS * bt_quantized_width(k, BT_ORDER_PLANES);
}

#define BT_TRIT_DEPTH_LINEAR(X)                                                                                        \
    BT_ON_X86(X(trit_depth_linear, BT_CPU, BT_SET(BT_I8), avx512vnni, BT_CPU_AVX512VNNI))                              \
    BT_ON_X86(X(trit_depth_linear, BT_CPU, BT_SET(BT_I8), avxvnni, BT_CPU_AVXVNNI))                                    \
    BT_ON_X86(X(trit_depth_linear, BT_CPU, BT_SET(BT_I8), avx2, BT_CPU_AVX2))                                          \
    BT_ON_ARM(X(trit_depth_linear, BT_CPU, BT_SET(BT_I8), neondot, BT_CPU_NEONDOT))                                    \
    BT_ON_ARM(X(trit_depth_linear, BT_CPU, BT_SET(BT_I8), neon, BT_CPU_NEON))                                          \
    X(trit_depth_linear, BT_CPU, BT_SET(BT_I8), scalar, 0)

BT_TRIT_DEPTH_LINEAR(BT_DECLARE_KERNEL)

#ifdef __cplusplus
}
#endif
#endif
