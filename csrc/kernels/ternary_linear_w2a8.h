/* ternary_linear_w2a8: int8 activations times packed ternary weights, exact in integers.
 *
 *   digits = 1   y[i][r] = cast( sum_g fl( (float)acc_g(i, r) * fl(q_scale[i] * scale[r * lds + g]) ) + bias[r] )
 *   digits > 1   y[i][r] = cast( (float)( sum_g ((double)acc_g(i, r) * q_step[i]) * (double)scale[r * lds + g] ) +
 *                bias[r] )     acc = a0 + 256 a1 (+ 65536 a2), where a_d is the product with row digits * i + d of q
 *
 * acc and a_d are sums of integers: in int32 where it is one digit, else at most 2^45, which fp64 holds. No fused
 * multiply-add; groups in rising order. So every variant, batch, tile and thread count gives the same bits.
 * tensor scale: lds = 0, group = k; channel: lds = 1, group = k; group: lds = k / group, group a multiple of 4.
 * q comes from act_quantize: in planes on the CPU, in natural order or with stride 4 on CUDA. k <= BT_W2A8_MAX_K keeps
 * 3 * 128 * k, the largest partial sum of a variant that works on codes plus two, inside int32. */
#ifndef BT_TERNARY_LINEAR_W2A8_H
#define BT_TERNARY_LINEAR_W2A8_H
#include "cuda_tensor.h"
#ifdef __cplusplus
extern "C" {
#endif

enum { BT_W2A8_MAX_K = 1 << 22 };

typedef struct bt_ternary_linear_w2a8 {
    const int8_t *q;      /* digits * m rows, ldq bytes apart; CPU: planes, zero padded to a multiple of 256 */
    const float *q_scale; /* [m], with one digit */
    const double *q_step; /* [m], with more digits */
    const int32_t *q_sum; /* [digits * m], the sum of a row of q; CUDA: NULL */
    const uint8_t *w;     /* n rows of ceil(k/4), ldw bytes apart */
    const float *scale;   /* as above */
    const void *bias;     /* NULL, or [n] of type bias_type */
    void *y;              /* m rows of n, ldy elements apart, of type y_type */
    int64_t m, n, k, ldq, ldw, ldy, lds, group;
    int y_type, bias_type, digits;
    int q_order;     /* CUDA: BT_ORDER_NATURAL, or BT_ORDER_STRIDE4 for a kernel that reads it */
    void *workspace; /* CUDA: bt_ternary_linear_w2a8_cuda_workspace() bytes, aligned to 8 */
    int64_t workspace_bytes;
    void *stream;
} bt_ternary_linear_w2a8;

typedef bt_status bt_ternary_linear_w2a8_fn(const bt_ternary_linear_w2a8 *p, int64_t tile_begin, int64_t tile_end);

static inline size_t bt_ternary_linear_w2a8_cuda_workspace(const bt_ternary_linear_w2a8 *p) {
    return bt_tensor_workspace(p->digits * p->m, p->n, p->k, p->group);
}

#define BT_TERNARY_LINEAR_W2A8(X)                                                                                      \
    BT_ON_CUDA(X(ternary_linear_w2a8, BT_GPU, BT_SET(BT_I8), cuda_skinny, BT_GPU_SKINNY | BT_READS_STRIDE4))           \
    BT_ON_CUDA(X(ternary_linear_w2a8, BT_GPU, BT_SET(BT_I8), cuda_bulk, BT_GPU_BULK | BT_READS_STRIDE4))               \
    BT_ON_CUDA(X(ternary_linear_w2a8, BT_GPU, BT_SET(BT_I8), cuda_tiled, 0))                                           \
    BT_ON_CUDA(X(ternary_linear_w2a8, BT_GPU, BT_SET(BT_I8), cuda_baseline, 0))                                        \
    BT_ON_X86(X(ternary_linear_w2a8, BT_CPU, BT_SET(BT_I8), avx512vnni, BT_CPU_AVX512VNNI))                            \
    BT_ON_X86(X(ternary_linear_w2a8, BT_CPU, BT_SET(BT_I8), avxvnni, BT_CPU_AVXVNNI))                                  \
    BT_ON_X86(X(ternary_linear_w2a8, BT_CPU, BT_SET(BT_I8), avx2, BT_CPU_AVX2))                                        \
    BT_ON_ARM(X(ternary_linear_w2a8, BT_CPU, BT_SET(BT_I8), neoni8mm, BT_CPU_NEONI8MM))                                \
    BT_ON_ARM(X(ternary_linear_w2a8, BT_CPU, BT_SET(BT_I8), neondot, BT_CPU_NEONDOT))                                  \
    BT_ON_ARM(X(ternary_linear_w2a8, BT_CPU, BT_SET(BT_I8), neon, BT_CPU_NEON))                                        \
    X(ternary_linear_w2a8, BT_CPU, BT_SET(BT_I8), scalar, 0)

BT_TERNARY_LINEAR_W2A8(BT_DECLARE_KERNEL)

#ifdef __cplusplus
}
#endif
#endif
