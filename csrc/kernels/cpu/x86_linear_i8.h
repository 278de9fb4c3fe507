/* linear_i8 on x86: its rows as four rows of bytes, in the walk and with the epilogue of the other int8 products. Comes
 * after the vocabulary of x86_i8_columns.h. */
#ifndef BT_CPU_X86_LINEAR_I8_H
#define BT_CPU_X86_LINEAR_I8_H

#include "int8_views.h"
#include "x86_i8_columns.h"

BT_ALWAYS_INLINE void dot_span(bt_span_dots *dots, const bt_rows *rows, const int8_t *q, int64_t ldq, int64_t begin,
                               int64_t end, int remove_offset, int in_parts, const int q_rows) {
    (void)begin, (void)remove_offset, (void)in_parts; /* all columns at once */
    dot_bytes(dots, rows->w, q, ldq, end, q_rows);
    if (end % VECTOR)
        add_rest(dots, rows->w, q, ldq, end / VECTOR * VECTOR, end, q_rows);
}

static const bt_w2a8_variant bytes_of_rows = {.unit = BT_BLOCK, .offset = OFFSET, .dot_span = dot_span};

#define LINEAR_I8_CASE(digits)                                                                                         \
    static __attribute__((noinline)) void digits_##digits(const bt_ternary_linear_w2a8 *p, int64_t begin,              \
                                                          int64_t end) {                                               \
        bt_w2a8_tiles(p, begin, end, bytes_of_rows, 1, digits);                                                        \
    }
LINEAR_I8_CASE(1)
LINEAR_I8_CASE(2)
LINEAR_I8_CASE(3)

static bt_status linear_i8(const bt_linear_i8 *p, int64_t tile_begin, int64_t tile_end) {
    BT_ASSERT(p->k <= BT_I8_MAX_K && p->digits >= 1 && p->digits <= BT_MAX_DIGITS);
    const bt_ternary_linear_w2a8 rows = bt_i8_view(p);
    p->digits == 1   ? digits_1(&rows, tile_begin, tile_end)
    : p->digits == 2 ? digits_2(&rows, tile_begin, tile_end)
                     : digits_3(&rows, tile_begin, tile_end);
    return BT_OK;
}

#endif
