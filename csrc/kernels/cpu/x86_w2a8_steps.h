/* ternary_linear_w2a8 with columns of w in the lanes of 256-bit vectors, which decode code + 1: the decoding, and what
 * stands around the loops of the variants.
 *
 * Before it a variant defines TWENTIETHS, of bt_lane_cost; after it, the functions that are declared here. */
#ifndef BT_CPU_X86_W2A8_STEPS_H
#define BT_CPU_X86_W2A8_STEPS_H

#if !defined(TWENTIETHS)
#error "define TWENTIETHS, what a product costs with columns of w in the lanes"
#endif

#include "x86_avx2.h"

#define COLUMN_COST {.lanes = LANES, .unit = BT_STEP, .reduction = 160, .twentieths = TWENTIETHS, .gather = 2}
#include "x86_w2a8_columns.h"

/* Offset of a step in a row of q. */
BT_ALWAYS_INLINE int64_t bt_step_at(int64_t step) {
    return BT_BLOCK * (step >> 1) + BT_STEP_BYTES * (step & 1);
}

/* code + 1, in {0, 1, 2}, of plane `plane`; a table takes a nibble, for even planes its low code, for odd ones its high
 * code. */
BT_ALWAYS_INLINE __m256i bt_codes_plus_one(__m256i bytes, const int plane) {
    const __m256i even = _mm256_broadcastsi128_si256(_mm_setr_epi8(1, 2, 0, 0, 1, 2, 0, 0, 1, 2, 0, 0, 1, 2, 0, 0));
    const __m256i odd = _mm256_broadcastsi128_si256(_mm_setr_epi8(1, 1, 1, 1, 2, 2, 2, 2, 0, 0, 0, 0, 0, 0, 0, 0));
    const __m256i shifted = plane < 2 ? bytes : _mm256_srli_epi16(bytes, 4);
    return _mm256_shuffle_epi8(plane % 2 ? odd : even, _mm256_and_si256(shifted, _mm256_set1_epi8(15)));
}

/* The same pointer, of which the compiler knows nothing: it then addresses what lies there by the distance from it, and
 * loads it anew. */
BT_ALWAYS_INLINE const void *bt_opaque(const void *p) {
    __asm__ volatile("" : "+r"(p));
    return p;
}

BT_ALWAYS_INLINE __m256i load_bytes(const void *from) {
    return _mm256_loadu_si256((const __m256i *)from);
}

/* Of the four rows, for a number of tokens. */
BT_ALWAYS_INLINE int rows_at_once(const int tokens);

/* Adds `steps` steps, the first of them number `first` of q, to the lanes of rows row.. and of all tokens, or, unless
 * `add`, stores them there: clearing them costs as much as a small group. */
BT_ALWAYS_INLINE void run_pass(int32_t *lanes, const uint8_t *const *w, const int8_t *q, int64_t ldq, int64_t first,
                               int64_t steps, int add, int row, const int rows, const int tokens);

/* What code + 1 adds to the lanes of a row: sum q. */
BT_ALWAYS_INLINE __m256i offset_lanes(const int8_t *q, int64_t begin, int64_t end);

/* Not inlined: among other loops gcc 12 spills the sums. */
#define DEFINE_ADD_STEPS(tokens)                                                                                       \
    static __attribute__((noinline)) void add_steps_##tokens(int32_t *lanes, const uint8_t *const *w, const int8_t *q, \
                                                             int64_t ldq, int64_t first, int64_t steps, int add) {     \
        const int rows = rows_at_once(tokens);                                                                         \
        for (int row = 0; row < BT_ROWS; row += rows)                                                                  \
            run_pass(lanes, w, q, ldq, first, steps, add, row, rows, tokens);                                          \
    }
DEFINE_ADD_STEPS(1)
DEFINE_ADD_STEPS(2)
DEFINE_ADD_STEPS(3)
DEFINE_ADD_STEPS(4)

/* By direct calls: one through a pointer, for each block, costs as much as 700 columns. */
BT_ALWAYS_INLINE void add_steps(int32_t *lanes, const uint8_t *const *w, const int8_t *q, int64_t ldq, int64_t first,
                                int64_t steps, int add, const int tokens) {
    if (tokens == 1)
        add_steps_1(lanes, w, q, ldq, first, steps, add);
    else if (tokens == 2)
        add_steps_2(lanes, w, q, ldq, first, steps, add);
    else if (tokens == 3)
        add_steps_3(lanes, w, q, ldq, first, steps, add);
    else
        add_steps_4(lanes, w, q, ldq, first, steps, add);
}

BT_ALWAYS_INLINE void add_span(int32_t *lanes, const bt_rows *rows, const int8_t *q, int64_t ldq, int64_t begin,
                               int64_t end, const int tokens) {
    const int64_t steps = (end - begin) / BT_STEP, rest = bt_div_up((end - begin) % BT_STEP, 4);
    const uint8_t *w[BT_ROWS];
    for (int r = 0; r < BT_ROWS; r++)
        w[r] = rows->w[r] + begin / 4;
    if (steps)
        add_steps(lanes, w, q, ldq, begin / BT_STEP, steps, 0, tokens);
    if (rest) {
        uint8_t tail[BT_ROWS][BT_STEP_BYTES];
        bt_copy_tail(tail[0], BT_STEP_BYTES, w, steps * BT_STEP_BYTES, rest);
        for (int r = 0; r < BT_ROWS; r++)
            w[r] = tail[r];
        add_steps(lanes, w, q, ldq, begin / BT_STEP + steps, 1, steps > 0, tokens);
    }
}

BT_ALWAYS_INLINE void dot_span(bt_span_dots *dots, const bt_rows *rows, const int8_t *q, int64_t ldq, int64_t begin,
                               int64_t end, int remove_offset, int in_parts, const int q_rows) {
    int32_t lanes[BT_TOKENS][BT_ROWS][LANES];
    (void)in_parts; /* small groups go another way */
    add_span(lanes[0][0], rows, q, ldq, begin, end, q_rows);
    for (int c = 0; c < q_rows; c++) {
        __m256i row[BT_ROWS];
        BT_UNROLL
        for (int r = 0; r < BT_ROWS; r++)
            row[r] = load_bytes(lanes[c][r]);
        if (remove_offset) {
            const __m256i offset = offset_lanes(q + c * ldq, begin, end);
            BT_UNROLL
            for (int r = 0; r < BT_ROWS; r++)
                row[r] = _mm256_sub_epi32(row[r], offset);
        }
        dots->part[c][0] = bt_add_halves(bt_sum_parts(row[0], row[1], row[2], row[3]));
    }
}

/* sum + the products of one plane; and with sums of one step, which may be int16. */
BT_ALWAYS_INLINE __m256i add_plane(__m256i sum, __m256i u, const int8_t *x);
BT_ALWAYS_INLINE __m256i add_sums(__m256i a, __m256i b);
BT_ALWAYS_INLINE __m256i negated(__m256i sum);
BT_ALWAYS_INLINE __m256i widen(__m256i sum);

BT_ALWAYS_INLINE words unit_offset(const int8_t *q) {
    __m256i sum = _mm256_setzero_si256();
    BT_UNROLL
    for (int plane = 0; plane < PLANES; plane++)
        sum = add_plane(sum, _mm256_set1_epi8(1), q + BT_BLOCK / PLANES * plane);
    return negated(sum);
}

/* Two rows at a time, whose sums are then interleaved: more do not fit into 16 registers. */
BT_ALWAYS_INLINE void unit_parts(words parts[FEW], const uint8_t *const w[BT_ROWS], int64_t at, const int8_t *q,
                                 int64_t ldq, const words offset[FEW], const int q_rows) {
    __m256i pair[2][FEW];
    BT_UNROLL
    for (int r = 0; r < BT_ROWS; r += 2) {
        __m256i sum[2][FEW];
        BT_UNROLL
        for (int i = 0; i < 2; i++) {
            const __m256i bytes = load_bytes(w[r + i] + at);
            BT_UNROLL
            for (int plane = 0; plane < PLANES; plane++) {
                const __m256i u = bt_codes_plus_one(bytes, plane);
                BT_UNROLL
                for (int c = 0; c < q_rows; c++)
                    sum[i][c] = add_plane(plane ? sum[i][c] : offset[c], u, q + c * ldq + BT_BLOCK / PLANES * plane);
            }
        }
        BT_UNROLL
        for (int c = 0; c < q_rows; c++)
            pair[r / 2][c] =
                add_sums(_mm256_unpacklo_epi32(sum[0][c], sum[1][c]), _mm256_unpackhi_epi32(sum[0][c], sum[1][c]));
    }
    BT_UNROLL
    for (int c = 0; c < q_rows; c++)
        parts[c] = widen(
            add_sums(_mm256_unpacklo_epi64(pair[0][c], pair[1][c]), _mm256_unpackhi_epi64(pair[0][c], pair[1][c])));
}

static const bt_w2a8_variant variant = {.unit = BT_STEP, .offset = 1, .dot_span = dot_span};

#endif
