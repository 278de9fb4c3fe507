/* ternary_linear_packed: floating activations times packed ternary weights.
 *
 *   y[i][r] = cast( sum_g fl( dot_g(i, r) * scale[r * lds + g] ) + bias[r] )        g = 0 .. k/group - 1, in order
 *
 * tensor scale: lds = 0, group = k; channel: lds = 1, group = k; group: lds = k / group, group a multiple of 4.
 *
 * CPU contract, the same bits in every variant, batch, tile and thread count: dot_g keeps 16 fp32 lanes, lane (c >> 4)
 * & 15 takes column c, columns of a lane in rising order, and the lanes are added as a tree l + (l + 8), l + (l + 4), l
 * + (l + 2), l + (l + 1). code * x is exact, so a fused multiply-add and a multiplication with an addition agree. Zero
 * codes multiply too: 0 * Inf is NaN, as in F.linear. Activations are read in float order, written by
 * bt_ternary_linear_packed_prepare(): xp[i][256 b + 16 s + lane] = (float)x[i][256 b + 16 lane + s]      zero beyond k,
 * rows padded to 256 A 32-bit word of a packed row is 16 weights of one lane: a shift by 2 s brings weight s of every
 * lane to bits 1:0. */
#ifndef BT_TERNARY_LINEAR_PACKED_H
#define BT_TERNARY_LINEAR_PACKED_H
#include "bt_common.h"
#ifdef __cplusplus
extern "C" {
#endif

enum { BT_FLOAT_BLOCK = 256 };

typedef struct bt_ternary_linear_packed {
    const void *x;      /* m rows of k, ldx elements apart, of type x_type */
    const uint8_t *w;   /* n rows of ceil(k/4), ldw bytes apart */
    const float *scale; /* as above */
    const void *bias;   /* NULL, or [n] of type bias_type */
    void *y;            /* m rows of n, ldy elements apart, of type y_type */
    float *xp;          /* CPU: m rows of ldxp floats, ldxp a multiple of 256; CUDA: NULL */
    int64_t m, n, k, ldx, ldw, ldy, lds, group, ldxp;
    int x_type, y_type, bias_type;
    void *stream;
} bt_ternary_linear_packed;

typedef bt_status bt_ternary_linear_packed_fn(const bt_ternary_linear_packed *p, int64_t tile_begin, int64_t tile_end);

/* CPU: fills rows [row_begin, row_end) of xp; to be done for all rows before any tile runs. */
bt_status bt_ternary_linear_packed_prepare(const bt_ternary_linear_packed *p, int64_t row_begin, int64_t row_end);

static inline int64_t bt_float_index(int64_t k) {
    return (k & ~(int64_t)255) + 16 * (k & 15) + ((k >> 4) & 15);
}

#define BT_TERNARY_LINEAR_PACKED(X)                                                                                    \
    BT_ON_CUDA(X(ternary_linear_packed, BT_GPU, BT_FLOATS, cuda_tiled, 0))                                             \
    BT_ON_CUDA(X(ternary_linear_packed, BT_GPU, BT_FLOATS, cuda_baseline, 0))                                          \
    BT_ON_X86(X(ternary_linear_packed, BT_CPU, BT_FLOATS, avx512, BT_CPU_AVX512))                                      \
    BT_ON_X86(X(ternary_linear_packed, BT_CPU, BT_FLOATS, avx2, BT_CPU_AVX2))                                          \
    BT_ON_ARM(X(ternary_linear_packed, BT_CPU, BT_FLOATS, neon, BT_CPU_NEON))                                          \
    X(ternary_linear_packed, BT_CPU, BT_FLOATS, scalar, 0)

BT_TERNARY_LINEAR_PACKED(BT_DECLARE_KERNEL)

#ifdef __cplusplus
}
#endif
#endif
