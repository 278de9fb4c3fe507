/* ternary_embedding: rows of a packed table, gathered by index.
 *
 *   y[i][c] = cast( sum_d fl( code(d n + index[i], c) * scale[(d n + index[i]) * lds + c / group] ) ),  d < depth
 *
 * A product is one fp32 multiplication. With one plane it is cast; of more planes the sum is in fp64, in order, and
 * rounded to fp32 once before the cast. The scale addressing is that of ternary_unpack. An index outside [0, n) gives a
 * row of NaN: no memory is read, on any device. A tile is a row of y. */
#ifndef BT_TERNARY_EMBEDDING_H
#define BT_TERNARY_EMBEDDING_H
#include "bt_common.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef struct bt_ternary_embedding {
    const int64_t *index; /* [m] */
    const uint8_t *w;     /* depth planes of n rows of ceil(k/4), ldw bytes apart, the lowest plane first */
    const float *scale;   /* as above */
    void *y;              /* m rows of k, ldy elements apart, of type y_type */
    int64_t m, n, k, ldw, ldy, lds, group;
    int depth, y_type;
    void *stream;
} bt_ternary_embedding;

typedef bt_status bt_ternary_embedding_fn(const bt_ternary_embedding *p, int64_t row_begin, int64_t row_end);

#define BT_TERNARY_EMBEDDING(X)                                                                                        \
    BT_ON_CUDA(X(ternary_embedding, BT_GPU, BT_FLOATS, cuda_baseline, 0))                                              \
    BT_ON_X86(X(ternary_embedding, BT_CPU, BT_FLOATS, avx512, BT_CPU_AVX512))                                          \
    BT_ON_X86(X(ternary_embedding, BT_CPU, BT_FLOATS, avx2, BT_CPU_AVX2))                                              \
    BT_ON_ARM(X(ternary_embedding, BT_CPU, BT_FLOATS, neon, BT_CPU_NEON))                                              \
    X(ternary_embedding, BT_CPU, BT_FLOATS, scalar, 0)

BT_TERNARY_EMBEDDING(BT_DECLARE_KERNEL)

#ifdef __cplusplus
}
#endif
#endif
