/* Int8 products of four rows of bytes with rows of q whose columns are in the same order, columns in the lanes. Serves
 * linear_i8, and products whose weights are decoded to bytes first.
 *
 * Before it a variant defines `bytes`, its vectors of VECTOR bytes, and the vocabulary below:
 *   weights weights_at(w)     of signed bytes, OFFSET (128 or 0) added, or with ROWS_HAVE_OFFSET of bytes that have it
 *   digits digits_at(q)
 *   bytes dot(acc, weights, digits)     four products more in each lane of 32 bits
 *   bytes zero(), minus(a, b)     in such lanes          bytes pick_bytes(table, index)     table[index], index < 16
 *   bytes settled(v)     v in one register: gcc 12 copies some sums otherwise
 *   void sum_parts(__m128i *part, a, b, c, d)     sums over lanes of four rows, a part for each 16 bytes of a vector
 *   int rows_at_once(q_rows)     of the four          ADD_ROWS     how a function that has the loop is declared */
#ifndef BT_CPU_X86_I8_COLUMNS_H
#define BT_CPU_X86_I8_COLUMNS_H

#include "x86_w2a8_block.h"

typedef bytes sums_t[BT_ROWS][BT_TOKENS];

/* Adds bytes [at, at + VECTOR) of `rows` rows. */
BT_ALWAYS_INLINE void add_vector(sums_t acc, const uint8_t *const *w, const int8_t *q, int64_t ldq, int64_t at,
                                 const int rows, const int q_rows) {
    weights weight[BT_ROWS];
    BT_UNROLL
    for (int r = 0; r < rows; r++)
        weight[r] = weights_at(w[r] + at);
    BT_UNROLL
    for (int c = 0; c < q_rows; c++) {
        const digits digit = digits_at(q + c * ldq + at);
        BT_UNROLL
        for (int r = 0; r < rows; r++)
            acc[r][c] = dot(acc[r][c], weight[r], digit);
    }
}

/* Rows row.. of the four, as many as go at once, over bytes [0, end), a multiple of VECTOR. Rows that have their offset
 * lie in a cache. */
BT_ALWAYS_INLINE void add_vectors(sums_t out, const uint8_t *const *w, const int8_t *q, int64_t ldq, int64_t end,
                                  int row, const int rows, const int q_rows) {
    sums_t acc;
    BT_UNROLL
    for (int r = 0; r < rows; r++) {
        BT_UNROLL
        for (int c = 0; c < q_rows; c++)
            acc[r][c] = zero();
    }
    for (int64_t at = 0; at < end; at += VECTOR) {
#if !defined(ROWS_HAVE_OFFSET)
        BT_UNROLL
        for (int i = 0; i < rows * VECTOR; i += 64)
            bt_prefetch(w, BT_ROWS * at + row * VECTOR + i);
#endif
        add_vector(acc, w + row, q, ldq, at, rows, q_rows);
        BT_UNROLL
        for (int r = 0; r < rows; r++) {
            BT_UNROLL
            for (int c = 0; c < q_rows; c++)
                acc[r][c] = settled(acc[r][c]);
        }
    }
    BT_UNROLL
    for (int r = 0; r < rows; r++) {
        BT_UNROLL
        for (int c = 0; c < q_rows; c++)
            out[row + r][c] = acc[r][c];
    }
}

/* The columns after whole vectors, as they are in memory: less than one. */
static __attribute__((noinline, unused)) void add_rest(bt_span_dots *dots, const uint8_t *const *w, const int8_t *q,
                                                       int64_t ldq, int64_t begin, int64_t end, int q_rows) {
    for (int c = 0; c < q_rows; c++) {
        int32_t sum[BT_ROWS] = {0};
        for (int64_t at = begin; at < end; at++)
            for (int r = 0; r < BT_ROWS; r++)
                sum[r] += ((int8_t)w[r][at] + OFFSET) * q[c * ldq + at];
        dots->part[c][0] = _mm_add_epi32(dots->part[c][0], _mm_loadu_si128((const __m128i *)sum));
    }
}

#define DEFINE_ADD_ROWS(q_rows)                                                                                        \
    ADD_ROWS add_rows_##q_rows(sums_t acc, const uint8_t *const *w, const int8_t *q, int64_t ldq, int64_t end,         \
                               int row) {                                                                              \
        add_vectors(acc, w, q, ldq, end, row, rows_at_once(q_rows), q_rows);                                           \
    }
DEFINE_ADD_ROWS(1)
DEFINE_ADD_ROWS(2)
DEFINE_ADD_ROWS(3)
DEFINE_ADD_ROWS(4)

/* Part 0 of a bt_dot_span, over bytes [0, end). */
BT_ALWAYS_INLINE void dot_bytes(bt_span_dots *dots, const uint8_t *const *w, const int8_t *q, int64_t ldq, int64_t end,
                                const int q_rows) {
    const int64_t whole = end / VECTOR * VECTOR;
    sums_t acc;
    BT_UNROLL
    for (int row = 0; row < BT_ROWS; row += rows_at_once(q_rows)) {
        if (q_rows == 1)
            add_rows_1(acc, w, q, ldq, whole, row);
        else if (q_rows == 2)
            add_rows_2(acc, w, q, ldq, whole, row);
        else if (q_rows == 3)
            add_rows_3(acc, w, q, ldq, whole, row);
        else
            add_rows_4(acc, w, q, ldq, whole, row);
    }
    BT_UNROLL
    for (int c = 0; c < q_rows; c++) {
        __m128i part[VECTOR / 16];
        sum_parts(part, acc[0][c], acc[1][c], acc[2][c], acc[3][c]);
        BT_UNROLL
        for (int i = 1; i < VECTOR / 16; i++)
            part[0] = _mm_add_epi32(part[0], part[i]);
        dots->part[c][0] = part[0];
    }
}

#endif
