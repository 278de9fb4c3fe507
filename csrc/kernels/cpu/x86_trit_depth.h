/* trit_depth_linear on x86: four rows at a time are decoded to bytes and meet all tokens of a tile, in the blocks and
 * with the epilogue of the other int8 products. Comes after the vocabulary of x86_i8_columns.h, with ROWS_HAVE_OFFSET
 * defined before that: decoded rows have it. */
#ifndef BT_CPU_X86_TRIT_DEPTH_H
#define BT_CPU_X86_TRIT_DEPTH_H

#include "int8_views.h"
#include "x86_i8_columns.h"

#define DECODED VECTOR
#define SHIFT OFFSET
#include "trit_depth_rows.h"

static inline __attribute__((always_inline)) codes lookup(const uint8_t table[16], codes index) {
    return (codes)pick_bytes(_mm_loadu_si128((const __m128i *)table), (bytes)index);
}

/* acc - OFFSET * sum q, in lanes of 32 bits. */
BT_ALWAYS_INLINE bytes without_offset(bytes acc, const int8_t *q, int64_t end, int64_t step) {
    if (OFFSET) {
        uint8_t row[VECTOR];
        memset(row, OFFSET, sizeof row);
        bytes sum = zero();
        for (int64_t at = 0; at < end; at += step)
            sum = dot(sum, weights_at(row), digits_at(q + at));
        acc = minus(acc, sum);
    }
    return acc;
}

/* A block of 256 columns in parts of 64: 16 bytes of each plane. */
BT_ALWAYS_INLINE void dot_parts(bt_span_dots *dots, const uint8_t *const *w, const int8_t *q, int64_t ldq,
                                const int q_rows) {
    const int at_once = rows_at_once(q_rows);
    BT_UNROLL
    for (int half = 0; half < 64; half += VECTOR) {
        sums_t acc;
        BT_UNROLL
        for (int c = 0; c < q_rows; c++) {
            acc[0][c] = without_offset(zero(), q + c * ldq + half, BT_BLOCK, 64);
            BT_UNROLL
            for (int r = 1; r < BT_ROWS; r++)
                acc[r][c] = acc[0][c];
        }
        BT_UNROLL
        for (int row = 0; row < BT_ROWS; row += at_once) {
            BT_UNROLL
            for (int plane = 0; plane < 4; plane++)
                add_vector(acc + row, w + row, q, ldq, 64 * plane + half, at_once, q_rows);
        }
        BT_UNROLL
        for (int c = 0; c < q_rows; c++)
            sum_parts(dots->part[c] + half / 16, acc[0][c], acc[1][c], acc[2][c], acc[3][c]);
    }
}

BT_ALWAYS_INLINE void dot_span(bt_span_dots *dots, const bt_rows *rows, const int8_t *q, int64_t ldq, int64_t begin,
                               int64_t end, int remove_offset, int in_parts, const int q_rows) {
    const uint8_t *w[BT_ROWS];
    BT_UNROLL
    for (int r = 0; r < BT_ROWS; r++)
        w[r] = rows->w[r] + begin;
    if (in_parts) {
        dot_parts(dots, w, q + begin, ldq, q_rows);
        return;
    }
    const int64_t length = bt_div_up(end - begin, BT_BLOCK) * BT_BLOCK;
    dot_bytes(dots, w, q + begin, ldq, length, q_rows);
    for (int c = 0; remove_offset && OFFSET && c < q_rows; c++) {
        int32_t sum = 0;
        for (int64_t at = begin; at < begin + length; at++)
            sum += q[c * ldq + at];
        dots->part[c][0] = _mm_sub_epi32(dots->part[c][0], _mm_set1_epi32(OFFSET * sum));
    }
}

static const bt_w2a8_variant decoded_rows = {.unit = BT_BLOCK, .offset = OFFSET, .dot_span = dot_span};

/* Four rows by all tokens of a tile. */
BT_ALWAYS_INLINE void depth_block(const bt_ternary_linear_w2a8 *p, const bt_rows *rows, bt_tile t, const int whole,
                                  const int digits) {
    const int width = BT_TOKENS / digits;
    for (int64_t token = t.m0, count; token < t.m1; token += count) {
        count = bt_div_up(t.m1 - token, bt_div_up(t.m1 - token, width));
        if (digits == 1)
            BT_BY_COUNT(count, bt_w2a8_block, p, rows, token, decoded_rows, whole, 1)
        else if (digits == 2 && count == 2)
            bt_w2a8_block(p, rows, token, decoded_rows, whole, 2, 2);
        else
            bt_w2a8_block(p, rows, token, decoded_rows, whole, digits, 1);
    }
}

#define DEPTH_CASE(name, whole, digits)                                                                                \
    static __attribute__((noinline)) void name(const bt_ternary_linear_w2a8 *p, const bt_rows *rows, bt_tile t) {      \
        depth_block(p, rows, t, whole, digits);                                                                        \
    }
DEPTH_CASE(whole_1, 1, 1)
DEPTH_CASE(whole_2, 1, 2)
DEPTH_CASE(whole_3, 1, 3)
DEPTH_CASE(groups_1, 0, 1)
DEPTH_CASE(groups_2, 0, 2)
DEPTH_CASE(groups_3, 0, 3)

static bt_status trit_depth_linear(const bt_trit_depth_linear *p, int64_t tile_begin, int64_t tile_end) {
    static void (*const cases[2][3])(const bt_ternary_linear_w2a8 *, const bt_rows *,
                                     bt_tile) = {{groups_1, groups_2, groups_3}, {whole_1, whole_2, whole_3}};
    BT_ASSERT(p->k <= BT_I8_MAX_K && p->depth <= BT_MAX_DEPTH && p->ldq % BT_ACT_BLOCK == 0);
    if (!bt_group_fits(p->k, p->group))
        return bt_trit_depth_linear_scalar(p, tile_begin, tile_end);
    const bt_ternary_linear_w2a8 view = bt_trit_depth_view(p);
    const int64_t ld = bt_quantized_width(p->k, BT_ORDER_PLANES);
    uint8_t *const decoded = p->memory;
    for (int64_t index = tile_begin; index < tile_end; index++) {
        const bt_tile t = bt_tile_at(p->m, p->n, index);
        for (int64_t row = t.n0; row < t.n1; row += BT_ROWS) {
            bt_rows rows = bt_rows_at(decoded, 0, p->scale, p->lds, row, t.n1);
            decode_rows(p, row, rows.count, decoded, ld);
            for (int r = 1; r < rows.count; r++)
                rows.w[r] = decoded + r * ld;
            cases[p->group == p->k][p->digits - 1](&view, &rows, t);
        }
    }
    return BT_OK;
}

#endif
