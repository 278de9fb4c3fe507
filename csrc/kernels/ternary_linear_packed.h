/* ternary_linear_packed: floating activations times packed ternary weights.
 *
 *   y[i][r] = cast( sum_g fl( dot_g(i, r) * scale[r * lds + g] ) + bias[r] )        g = 0 .. k/group - 1, in order
 *
 * tensor scale: lds = 0, group = k; channel: lds = 1, group = k; group: lds = k / group, group a multiple of 4.
 *
 * CPU contract: dot_g keeps 16 fp32 lanes, lane (c >> 4) & 15 takes column c, columns of a lane in rising order, and
 * the lanes are added as a tree l + (l + 8), l + (l + 4), l + (l + 2), l + (l + 1). Zero codes multiply too: 0 * Inf is
 * NaN, as in F.linear. A token's result depends neither on the batch nor on tiles nor on threads.
 *
 * code * x is exact, so a fused multiply-add and a multiplication with an addition agree, and every variant that reads
 * fp32 gives the same bits. avx512bf16 adds two products of a lane at once, with the rounding of its instruction, and
 * takes subnormal activations and sums for zero: it differs from the others as fp32 sums in another order do.
 *
 * Activations are read as bt_ternary_linear_packed_prepare() writes them to xp, zero beyond k, rows padded to 256. A
 * 32-bit word of a packed row is 16 weights of one lane, and a shift brings those of the next step to its low bits:
 *
 *   float order, fp32   xp[i][256 b + 16 s + lane] = (float)x[i][256 b + 16 lane + s]              one weight a step
 *   pair order, bf16    xp[i][256 b + 32 s + 2 lane + h] = x[i][256 b + 16 lane + 2 s + h]         two weights a step
 *
 *   natural order, fp32  xp[i][c] = (float)x[i][c]              x itself where it is fp32; nothing is read beyond k
 *
 * The list says which a kernel reads, BT_READS_PAIRS or else float order, and BT_READS_NATURAL_* where it can read
 * natural order too; bt_packed_natural() says when it should. The scalar kernel reads the first two, for the group
 * sizes that a variant leaves to it.
 *
 * CUDA: fp32 sums in an order that the shape alone decides; a token's result may differ from the CPU's in rounding.
 * Tensor cores (skinny, bulk) sum doubled products and halve the sum, so a bf16 activation or a sum above 1.7e38, half
 * the largest float, becomes Inf. No fp16 activation is that large.
 * cuda_unpack is ternary_unpack and a product by cuBLAS, by csrc/dispatch/by_torch.cpp: the weight is rounded to x's
 * type.
 */
#ifndef BT_TERNARY_LINEAR_PACKED_H
#define BT_TERNARY_LINEAR_PACKED_H
#include "cuda_tensor.h"
#include "lane_cost.h"
#ifdef __cplusplus
extern "C" {
#endif

enum { BT_FLOAT_BLOCK = 256, BT_NATURAL_K = 1024 };

typedef struct bt_ternary_linear_packed {
    const void *x;      /* m rows of k, ldx elements apart, of type x_type */
    const uint8_t *w;   /* n rows of ceil(k/4), ldw bytes apart */
    const float *scale; /* as above */
    const void *bias;   /* NULL, or [n] of type bias_type */
    void *y;            /* m rows of n, ldy elements apart, of type y_type */
    void *xp;           /* CPU: m rows of type xp_type, ldxp apart, a multiple of 256 unless xp_natural; CUDA: NULL */
    int64_t m, n, k, ldx, ldw, ldy, lds, group, ldxp;
    int x_type, xp_type, y_type, bias_type;
    int xp_natural;  /* xp is in natural order */
    void *workspace; /* CUDA: bt_ternary_linear_packed_cuda_workspace() bytes, aligned to 8 */
    int64_t workspace_bytes;
    void *stream;
} bt_ternary_linear_packed;

typedef bt_status bt_ternary_linear_packed_fn(const bt_ternary_linear_packed *p, int64_t tile_begin, int64_t tile_end);

/* CPU: fills rows [row_begin, row_end) of xp; to be done for all rows before any tile runs. */
BT_EXPORT bt_status bt_ternary_linear_packed_prepare(const bt_ternary_linear_packed *p, int64_t row_begin,
                                                     int64_t row_end);

/* The xp_type of a kernel that reads so. */
static inline int bt_packed_xp_type(uint32_t reads) {
    return reads & BT_READS_PAIRS ? BT_BF16 : BT_F32;
}

/* Whether it can read natural order, and whether it is faster so: its vectors then hold rows of w. */
static inline int bt_packed_may_be_natural(const bt_ternary_linear_packed *p, uint32_t reads) {
    const uint32_t natural = BT_READS_NATURAL_8 | BT_READS_NATURAL_16;
    return (reads & natural) && p->group == p->k && p->k > 0 && p->k <= BT_NATURAL_K;
}

static inline int bt_packed_natural(const bt_ternary_linear_packed *p, uint32_t reads) {
    static const bt_lane_cost of_16 = {16, BT_FLOAT_BLOCK, 64, 0, 17, 14, 0};
    static const bt_lane_cost of_8 = {8, BT_FLOAT_BLOCK, 64, 0, 21, 11, 0};
    return bt_packed_may_be_natural(p, reads) &&
           bt_rows_fit_lanes(p->m, p->n, p->k, reads & BT_READS_NATURAL_16 ? &of_16 : &of_8);
}

static inline void *bt_packed_xp_row(const bt_ternary_linear_packed *p, int64_t i) {
    return (char *)p->xp + i * p->ldxp * (p->xp_type == BT_F32 ? 4 : 2);
}

static inline size_t bt_ternary_linear_packed_cuda_workspace(const bt_ternary_linear_packed *p) {
    return bt_tensor_workspace(p->m, p->n, p->k, p->group);
}

#define BT_TERNARY_LINEAR_PACKED(X)                                                                                    \
    BT_ON_CUDA(X(ternary_linear_packed, BT_GPU, BT_FLOATS, cuda_unpack, BT_GPU_UNPACK))                                \
    BT_ON_CUDA(X(ternary_linear_packed, BT_GPU, BT_SET(BT_F16) | BT_SET(BT_BF16), cuda_skinny, BT_GPU_SKINNY))         \
    BT_ON_CUDA(X(ternary_linear_packed, BT_GPU, BT_SET(BT_F16) | BT_SET(BT_BF16), cuda_bulk, BT_GPU_BULK))             \
    BT_ON_CUDA(X(ternary_linear_packed, BT_GPU, BT_FLOATS, cuda_tiled, 0))                                             \
    BT_ON_CUDA(X(ternary_linear_packed, BT_GPU, BT_FLOATS, cuda_baseline, 0))                                          \
    BT_ON_X86(X(ternary_linear_packed, BT_CPU, BT_SET(BT_BF16), avx512bf16, BT_CPU_AVX512BF16 | BT_READS_PAIRS))       \
    BT_ON_X86(X(ternary_linear_packed, BT_CPU, BT_FLOATS, avx512, BT_CPU_AVX512 | BT_READS_NATURAL_16))                \
    BT_ON_X86(X(ternary_linear_packed, BT_CPU, BT_FLOATS, avx2, BT_CPU_AVX2 | BT_READS_NATURAL_8))                     \
    BT_ON_ARM(X(ternary_linear_packed, BT_CPU, BT_FLOATS, neon, BT_CPU_NEON))                                          \
    X(ternary_linear_packed, BT_CPU, BT_FLOATS, scalar, 0)

BT_TERNARY_LINEAR_PACKED(BT_DECLARE_KERNEL)

#ifdef __cplusplus
}
#endif
#endif
