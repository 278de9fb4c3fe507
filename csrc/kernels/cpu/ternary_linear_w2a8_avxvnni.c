/* ternary_linear_w2a8, 4 rows x 1..4 tokens, vpdpbusd on codes plus one, for CPUs that have it at 256 bit alone.
 *
 *   sum (code + 1) q - sum q = sum code q
 *
 * The tables of bt_codes_plus_one() decode a step in 7 instructions; shifts and masks, without vpternlogd, take 10. A
 * lane is at most k / 8 * 2 * 128, inside int32 for k <= BT_W2A8_MAX_K. */
#define TWENTIETHS 20
#include "x86_vnni.h"
#include "x86_w2a8_steps.h"

BT_ALWAYS_INLINE __m256i add_plane(__m256i sum, __m256i u, const int8_t *x) {
    return dot_loaded(sum, u, x);
}
BT_ALWAYS_INLINE __m256i add_sums(__m256i a, __m256i b) {
    return _mm256_add_epi32(a, b);
}
BT_ALWAYS_INLINE __m256i negated(__m256i sum) {
    return _mm256_sub_epi32(_mm256_setzero_si256(), sum);
}
BT_ALWAYS_INLINE __m256i widen(__m256i sum) {
    return sum;
}

/* Adds a step of one row to the sums of its tokens; x[c] points at the first plane. */
BT_ALWAYS_INLINE void add_row(__m256i sum[4], const uint8_t *w, const int8_t *const x[4], const int tokens) {
    const __m256i bytes = load_bytes(w);
    BT_UNROLL
    for (int plane = 0; plane < 4; plane++) {
        const __m256i u = bt_codes_plus_one(bytes, plane);
        BT_UNROLL
        for (int c = 0; c < tokens; c++)
            sum[c] = dot_loaded(sum[c], u, x[c] + 64 * plane);
    }
}

/* Adds a step of four rows to their sums of even and of odd planes for one token: with one sum, each product would wait
 * for the last. The activations are loaded once and the weights twice, for which there are registers. */
BT_ALWAYS_INLINE void add_token(__m256i sum[4][4], const uint8_t *const *w, int64_t at, const int8_t *x) {
    BT_UNROLL
    for (int plane = 0; plane < 4; plane += 2) {
        const __m256i even = load_bytes(x + 64 * plane), odd = load_bytes(x + 64 * plane + 64);
        BT_UNROLL
        for (int r = 0; r < BT_ROWS; r++) {
            const __m256i bytes = load_bytes(bt_opaque(w[r] + at));
            sum[r][0] = dot_u8_i8(sum[r][0], bt_codes_plus_one(bytes, plane), even);
            sum[r][1] = dot_u8_i8(sum[r][1], bt_codes_plus_one(bytes, plane + 1), odd);
        }
    }
}

BT_ALWAYS_INLINE void store_lanes(int32_t *lanes, __m256i sum, int add) {
    _mm256_storeu_si256((__m256i *)lanes, add ? _mm256_add_epi32(load_bytes(lanes), sum) : sum);
}

/* Adds `steps` steps, the first of them number `first` of q, to the lanes of rows row.. and of all tokens, or, unless
 * `add`, stores them there. */
BT_ALWAYS_INLINE void run_pass(int32_t *lanes, const uint8_t *const *w, const int8_t *q, int64_t ldq, int64_t first,
                               int64_t steps, int add, int row, const int rows, const int tokens) {
    const int sums = tokens == 1 ? 2 : tokens;
    __m256i sum[4][4];
    BT_UNROLL
    for (int r = 0; r < rows; r++) {
        BT_UNROLL
        for (int i = 0; i < sums; i++)
            sum[r][i] = _mm256_setzero_si256();
    }
    for (int64_t done = 0; done < steps; done++) {
        const int8_t *x[4];
        BT_UNROLL
        for (int c = 0; c < tokens; c++)
            x[c] = bt_opaque(q + c * ldq + bt_step_at(first + done));
        for (int r = 0; r < rows; r += 2)
            bt_prefetch(w, (BT_ROWS * done + row + r) * BT_STEP_BYTES);
        if (tokens == 1) {
            add_token(sum, w, BT_STEP_BYTES * done, x[0]);
            continue;
        }
        BT_UNROLL
        for (int r = 0; r < rows; r++)
            add_row(sum[r], w[row + r] + BT_STEP_BYTES * done, x, tokens);
    }
    BT_UNROLL
    for (int r = 0; r < rows; r++) {
        if (tokens == 1)
            sum[r][0] = _mm256_add_epi32(sum[r][0], sum[r][1]);
        BT_UNROLL
        for (int c = 0; c < tokens; c++)
            store_lanes(lanes + LANES * (BT_ROWS * c + row + r), sum[r][c], add);
    }
}

/* Eight sums at a time, or six: with the decoding they fill 16 registers, and they are independent enough for an
 * instruction of 5 cycles. */
BT_ALWAYS_INLINE int rows_at_once(const int tokens) {
    return tokens <= 2 ? 4 : 2;
}

/* What code + 1 adds to the lanes of a row: sum q. */
BT_ALWAYS_INLINE __m256i offset_lanes(const int8_t *q, int64_t begin, int64_t end) {
    __m256i offset = _mm256_setzero_si256();
    for (int64_t step = begin / BT_STEP; step < bt_div_up(end, BT_STEP); step++) {
        BT_UNROLL
        for (int plane = 0; plane < 4; plane++)
            offset = dot_loaded(offset, _mm256_set1_epi8(1), q + bt_step_at(step) + 64 * plane);
    }
    return offset;
}

BT_DEFINE_W2A8(avxvnni, variant)
