/* ternary_from_base3: trits stored as digits of base 3, five a byte, to 2-bit rows.
 *
 *   BT_BASE3_ROWS    a row is ceil(k/5) bytes; byte j = sum over i < 5 of (weight(5 j + i) + 1) 3^i, at most 242
 *   BT_BASE3_TQ1     a row is blocks of 256 weights, 54 bytes each: parts of 32, 16 and 4 bytes, then 2 of another
 *                    meaning, the scale (TQ1_0 of ggml)
 *   BT_BASE3_PTQ1    the same in blocks of 128 weights, 28 bytes: parts of 16, 8 and 2 (PTQ1_0 of PrismML)
 *
 * A part of b bytes holds the next 5 b weights of its block, the last part 4 b: digit d of byte m is weight d b + m of
 * the part, and byte = ceil(v 256 / 243), v = sum over d < 5 of (weight + 1) 3^(4 - d). What stands as the fifth digit
 * of a last part is not read.
 *
 * All codes of a byte that no five trits make are 11. Of the weights that a row's last byte holds from column k on,
 * those that meet the last byte of w are written there; a code that no byte holds is 00. A tile is a row. */
#ifndef BT_TERNARY_FROM_BASE3_H
#define BT_TERNARY_FROM_BASE3_H
#include "bt_common.h"
#ifdef __cplusplus
extern "C" {
#endif

enum { BT_BASE3_ROWS, BT_BASE3_TQ1, BT_BASE3_PTQ1 };

typedef struct bt_ternary_from_base3 {
    const uint8_t *data; /* n rows, ldd bytes apart */
    uint8_t *w;          /* n rows of ceil(k/4), ldw bytes apart */
    int64_t n, k, ldd, ldw;
    int layout;
    void *stream;
} bt_ternary_from_base3;

typedef bt_status bt_ternary_from_base3_fn(const bt_ternary_from_base3 *p, int64_t row_begin, int64_t row_end);

#define BT_TERNARY_FROM_BASE3(X) X(ternary_from_base3, BT_CPU, BT_SET(BT_I8), scalar, 0)

BT_TERNARY_FROM_BASE3(BT_DECLARE_KERNEL)

#ifdef __cplusplus
}
#endif
#endif
