/* ternary_linear_w2a8 in 256-bit vectors: what stands around the loops of the variants, which decode code + 1.
 *
 * A variant defines, and then includes this:
 *   TWENTIETHS           of bt_lane_cost
 *   dot_u8_i8()          a sum and the four products of each lane
 *   LANES = 8, load()    int32 lanes of a sum, and an unaligned load
 *   rows_at_once()       of the four rows, for a number of tokens
 *   run_pass()           adds `steps` steps of some rows to the lanes, or, unless `add`, stores them there
 *   offset_lanes()       what code + 1 adds to the lanes of a row: sum q */
enum { MOST_Q = 4 };
typedef __m256i words;

/* With the mask in memory: sums, codes and weights leave no register for it. */
BT_ALWAYS_INLINE words low_codes(words codes) {
    static const _Alignas(32) uint32_t mask[8] = {0x03030303, 0x03030303, 0x03030303, 0x03030303,
                                                  0x03030303, 0x03030303, 0x03030303, 0x03030303};
    words low;
    __asm__("vpand %2, %1, %0" : "=x"(low) : "x"(codes), "m"(*(const __m256i *)mask));
    return low;
}
BT_ALWAYS_INLINE words shift(words codes) {
    return _mm256_srli_epi32(codes, 2);
}
BT_ALWAYS_INLINE words load_words(const uint32_t *from) {
    return _mm256_load_si256((const __m256i *)from);
}
BT_ALWAYS_INLINE void store_words(int32_t *to, words v) {
    _mm256_store_si256((__m256i *)to, v);
}
BT_ALWAYS_INLINE words splat_quad(const int8_t *from) {
    int32_t quad;
    memcpy(&quad, from, sizeof quad);
    return _mm256_set1_epi32(quad);
}

static const bt_lane_cost other_cost = {
    .lanes = LANES, .unit = BT_STEP, .reduction = 160, .twentieths = TWENTIETHS, .gather = 2};

#include "x86_short_w2a8.h"

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

/* The same of one step or less, for small groups: a call and loops of one pass cost more than the step. */
BT_ALWAYS_INLINE void add_one_step(int32_t *lanes, const bt_rows *rows, const int8_t *q, int64_t ldq, int64_t begin,
                                   int64_t end, const int tokens) {
    uint8_t tail[BT_ROWS][BT_STEP_BYTES];
    const uint8_t *w[BT_ROWS];
    for (int r = 0; r < BT_ROWS; r++)
        w[r] = rows->w[r] + begin / 4;
    if (end - begin < BT_STEP) {
        bt_copy_tail(tail[0], BT_STEP_BYTES, w, 0, bt_div_up(end - begin, 4));
        for (int r = 0; r < BT_ROWS; r++)
            w[r] = tail[r];
    }
    const int at_once = rows_at_once(tokens);
    BT_UNROLL
    for (int row = 0; row < BT_ROWS; row += at_once)
        run_pass(lanes, w, q, ldq, begin / BT_STEP, 1, 0, row, at_once, tokens);
}

BT_ALWAYS_INLINE void dot_span(bt_span_dots *dots, const bt_rows *rows, const int8_t *q, int64_t ldq, int64_t begin,
                               int64_t end, int remove_offset, int in_parts, const int q_rows) {
    int32_t lanes[BT_TOKENS][BT_ROWS][LANES];
    if (remove_offset && end - begin <= BT_STEP)
        add_one_step(lanes[0][0], rows, q, ldq, begin, end, q_rows);
    else
        add_span(lanes[0][0], rows, q, ldq, begin, end, q_rows);
    for (int c = 0; c < q_rows; c++) {
        __m256i row[BT_ROWS];
        BT_UNROLL
        for (int r = 0; r < BT_ROWS; r++)
            row[r] = load(lanes[c][r]);
        if (remove_offset) {
            const __m256i offset = offset_lanes(q + c * ldq, begin, end);
            BT_UNROLL
            for (int r = 0; r < BT_ROWS; r++)
                row[r] = _mm256_sub_epi32(row[r], offset);
        }
        const __m256i parts = bt_sum_parts(row[0], row[1], row[2], row[3]);
        if (in_parts)
            _mm256_storeu_si256((__m256i *)dots->part[c], parts);
        else
            dots->part[c][0] = bt_add_halves(parts);
    }
}

static const bt_w2a8_variant variant = {.unit = BT_STEP, .offset = 1, .dot_span = dot_span};
