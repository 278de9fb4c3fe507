/* ternary_linear_w2a8, 4 rows x 1..4 tokens, vpmaddubsw on codes plus one.
 *
 *   sum (code + 1) q - sum q = sum code q
 *
 * A step adds at most 4 planes * 2 bytes * 2 * -128 = -2048 to an int16 lane (and at most 2032), so 16 steps reach
 * -32768 at most and are then widened to int32. */
#define TWENTIETHS 13
#define GROUP_SUMS
#include "x86_w2a8_steps.h"

enum { STEPS_IN_INT16 = 16 };

/* The same sum, at once: gcc 12 otherwise gathers the products of a whole step, for which there are not enough
 * registers. */
BT_ALWAYS_INLINE __m256i fixed(__m256i sum) {
    __asm__("" : "+x"(sum));
    return sum;
}

/* sum + the products of one plane, in int16. As an instruction with its load, so that the rows do not share loads: they
 * would need registers too. */
BT_ALWAYS_INLINE __m256i add_plane(__m256i sum, __m256i u, const int8_t *x) {
    __m256i product;
    __asm__("vpmaddubsw %2, %1, %0" : "=x"(product) : "x"(u), "m"(*(const __m256i_u *)x));
    return fixed(_mm256_add_epi16(sum, product));
}

BT_ALWAYS_INLINE __m256i add_sums(__m256i a, __m256i b) {
    return _mm256_add_epi16(a, b);
}
BT_ALWAYS_INLINE __m256i negated(__m256i sum) {
    return _mm256_sub_epi16(_mm256_setzero_si256(), sum);
}

BT_ALWAYS_INLINE __m256i widen(__m256i sum) {
    return _mm256_madd_epi16(sum, _mm256_set1_epi16(1));
}

/* acc + the four products u8 * s8 of each lane. The ones are an operand in memory: sums, codes, masks and weights leave
 * no register for them. */
BT_ALWAYS_INLINE __m256i dot_u8_i8(__m256i acc, __m256i u, __m256i q) {
    static const _Alignas(32) int16_t ones[16] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
    __m256i sum;
    __asm__("vpmaddwd %2, %1, %0" : "=x"(sum) : "x"(_mm256_maddubs_epi16(u, q)), "m"(*(const __m256i *)ones));
    return fixed(_mm256_add_epi32(acc, sum));
}

/* In int16: 32 products of 128 columns add at most 32 * 2 * 3 * -128 = -24576. */
BT_ALWAYS_INLINE __m256i begin_sum(int32_t offset) {
    (void)offset;
    return _mm256_setzero_si256();
}
BT_ALWAYS_INLINE __m256i add_quad(__m256i acc, __m256i u, __m256i q) {
    return fixed(_mm256_add_epi16(acc, _mm256_maddubs_epi16(u, q)));
}
BT_ALWAYS_INLINE __m256i end_sum(__m256i acc, int32_t offset) {
    return _mm256_add_epi32(widen(acc), _mm256_set1_epi32(offset));
}

/* Adds a step of one row to the sums of its tokens; x[c] points at the first plane. */
BT_ALWAYS_INLINE void add_row(__m256i sum[4], __m256i bytes, const int8_t *const x[4], const int tokens) {
    BT_UNROLL
    for (int plane = 0; plane < 4; plane++) {
        const __m256i u = bt_codes_plus_one(bytes, plane);
        BT_UNROLL
        for (int c = 0; c < tokens; c++)
            sum[c] = add_plane(sum[c], u, x[c] + 64 * plane);
    }
}

/* Adds a step of four rows to their sums for one token, whose planes are loaded once. */
BT_ALWAYS_INLINE void add_token(__m256i sum[4][4], const __m256i bytes[4], const int8_t *x) {
    BT_UNROLL
    for (int plane = 0; plane < 4; plane++) {
        const __m256i q = load_bytes(x + 64 * plane);
        BT_UNROLL
        for (int r = 0; r < BT_ROWS; r++)
            sum[r][0] = fixed(_mm256_add_epi16(sum[r][0], _mm256_maddubs_epi16(bt_codes_plus_one(bytes[r], plane), q)));
    }
}

/* To the lanes, or in their place. */
BT_ALWAYS_INLINE void store_lanes(int32_t *lanes, __m256i sum, int add) {
    const __m256i wide = widen(sum);
    _mm256_storeu_si256((__m256i *)lanes, add ? _mm256_add_epi32(load_bytes(lanes), wide) : wide);
}

/* Adds `steps` steps, the first of them number `first` of q, to the lanes of rows row.. and of all tokens; the first
 * sums replace what is in the lanes unless `add`: clearing them costs as much as a small group. */
BT_ALWAYS_INLINE void run_pass(int32_t *lanes, const uint8_t *const *w, const int8_t *q, int64_t ldq, int64_t first,
                               int64_t steps, int add, int row, const int rows, const int tokens) {
    for (int64_t done = 0; done < steps;) {
        const int64_t stop = steps - done < STEPS_IN_INT16 ? steps : done + STEPS_IN_INT16;
        __m256i sum[4][4];
        BT_UNROLL
        for (int r = 0; r < rows; r++) {
            BT_UNROLL
            for (int c = 0; c < tokens; c++)
                sum[r][c] = _mm256_setzero_si256();
        }
        for (; done < stop; done++) {
            const int8_t *x[4];
            BT_UNROLL
            for (int c = 0; c < tokens; c++)
                x[c] = bt_opaque(q + c * ldq + bt_step_at(first + done));
            __m256i bytes[4];
            BT_UNROLL
            for (int r = 0; r < rows; r++) {
                if (r % 2 == 0)
                    bt_prefetch(w, (BT_ROWS * done + row + r) * BT_STEP_BYTES);
                bytes[r] = load_bytes(w[row + r] + BT_STEP_BYTES * done);
            }
            if (tokens == 1) {
                add_token(sum, bytes, x[0]);
                continue;
            }
            BT_UNROLL
            for (int r = 0; r < rows; r++)
                add_row(sum[r], bytes[r], x, tokens);
        }
        BT_UNROLL
        for (int r = 0; r < rows; r++) {
            BT_UNROLL
            for (int c = 0; c < tokens; c++)
                store_lanes(lanes + LANES * (BT_ROWS * c + row + r), sum[r][c], add);
        }
        add = 1;
    }
}

/* One token: 4 rows at a time; more tokens: 2 rows, so that the sums fit into 16 registers. */
BT_ALWAYS_INLINE int rows_at_once(const int tokens) {
    return tokens == 1 ? 4 : 2;
}

/* What code + 1 adds to the lanes of a row: sum q. */
BT_ALWAYS_INLINE __m256i offset_lanes(const int8_t *q, int64_t begin, int64_t end) {
    __m256i offset = _mm256_setzero_si256();
    for (int64_t step = begin / BT_STEP; step < bt_div_up(end, BT_STEP); step++) {
        __m256i sum = _mm256_setzero_si256();
        BT_UNROLL
        for (int plane = 0; plane < 4; plane++)
            sum = add_plane(sum, _mm256_set1_epi8(1), q + bt_step_at(step) + 64 * plane);
        offset = _mm256_add_epi32(offset, widen(sum));
    }
    return offset;
}

BT_DEFINE_W2A8(avx2, variant)
