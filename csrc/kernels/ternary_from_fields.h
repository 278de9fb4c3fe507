/* ternary_from_fields: trits stored as fields weight + 1 of two bits, in the orders of other programs, to 2-bit rows.
 *
 * A row of data is blocks, ldblock bytes apart, and a block begins with runs of `run` bytes. A run holds four parts of
 * `run` weights: part i is the fields at bits 2 i of its bytes, or at bits 6 - 2 i with high_first. The codes of run j,
 * counted over all blocks, stand in w from byte j * run of the row on, part i of it ldpart bytes behind part i - 1: by
 * run / 4 bytes they lie one behind the other, by a row each part is a row of w.
 *
 * A part is padded with 00 to a whole byte. The field 3, which is no weight, becomes 11, and reserved[r] tells whether
 * row r of data has one. A tile is a row of data. */
#ifndef BT_TERNARY_FROM_FIELDS_H
#define BT_TERNARY_FROM_FIELDS_H
#include "bt_common.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef struct bt_ternary_from_fields {
    const uint8_t *data;                                     /* n rows, ldd bytes apart */
    uint8_t *w;                                              /* of a row of data, ldw bytes apart */
    uint8_t *reserved;                                       /* n, 0 or 1 */
    int64_t n, blocks, runs, run, ldd, ldblock, ldw, ldpart; /* run is a multiple of 4 where a row has several */
    int high_first;
    void *stream;
} bt_ternary_from_fields;

typedef bt_status bt_ternary_from_fields_fn(const bt_ternary_from_fields *p, int64_t row_begin, int64_t row_end);

#define BT_TERNARY_FROM_FIELDS(X)                                                                                      \
    BT_ON_X86(X(ternary_from_fields, BT_CPU, BT_SET(BT_I8), avx2, BT_CPU_AVX2))                                        \
    BT_ON_ARM(X(ternary_from_fields, BT_CPU, BT_SET(BT_I8), neon, BT_CPU_NEON))                                        \
    X(ternary_from_fields, BT_CPU, BT_SET(BT_I8), scalar, 0)

BT_TERNARY_FROM_FIELDS(BT_DECLARE_KERNEL)

#ifdef __cplusplus
}
#endif
#endif
