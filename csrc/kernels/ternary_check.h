/* ternary_check: where a packed row is not canonical.
 *
 *   column[r] = the first c with code(r, c) == 11, or with c >= k and code(r, c) != 00 (padding); -1 when there is none
 *
 * A tile is a row. */
#ifndef BT_TERNARY_CHECK_H
#define BT_TERNARY_CHECK_H
#include "bt_common.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef struct bt_ternary_check {
    const uint8_t *w; /* n rows of ceil(k/4), ldw bytes apart */
    int64_t *column;  /* n */
    int64_t n, k, ldw;
    void *stream;
} bt_ternary_check;

typedef bt_status bt_ternary_check_fn(const bt_ternary_check *p, int64_t row_begin, int64_t row_end);

#define BT_TERNARY_CHECK(X)                                                                                            \
    BT_ON_CUDA(X(ternary_check, BT_GPU, BT_SET(BT_I8), cuda_baseline, 0))                                              \
    X(ternary_check, BT_CPU, BT_SET(BT_I8), scalar, 0)

BT_TERNARY_CHECK(BT_DECLARE_KERNEL)

#ifdef __cplusplus
}
#endif
#endif
