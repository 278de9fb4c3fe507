/* ternary_transpose: packed rows of the transposed matrix.
 *
 *   code(t, c, r) = code(w, r, c)      w: n rows of k codes      t: k rows of n codes, padded with 00 to whole bytes
 *
 * Code 11 is moved like the others. A tile is BT_TRANSPOSE_TILE rows of t. */
#ifndef BT_TERNARY_TRANSPOSE_H
#define BT_TERNARY_TRANSPOSE_H
#include "bt_common.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef struct bt_ternary_transpose {
    const uint8_t *w; /* n rows of ceil(k/4), ldw bytes apart */
    uint8_t *t;       /* k rows of ceil(n/4), ldt bytes apart */
    int64_t n, k, ldw, ldt;
    void *stream;
} bt_ternary_transpose;

enum { BT_TRANSPOSE_TILE = 64 };

typedef bt_status bt_ternary_transpose_fn(const bt_ternary_transpose *p, int64_t tile_begin, int64_t tile_end);

#define BT_TERNARY_TRANSPOSE(X)                                                                                        \
    BT_ON_CUDA(X(ternary_transpose, BT_GPU, BT_SET(BT_I8), cuda_baseline, 0))                                          \
    X(ternary_transpose, BT_CPU, BT_SET(BT_I8), scalar, 0)

BT_TERNARY_TRANSPOSE(BT_DECLARE_KERNEL)

#ifdef __cplusplus
}
#endif
#endif
