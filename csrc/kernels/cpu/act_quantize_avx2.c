/* act_quantize in steps of 32 columns; see the header for the formula and the orders.
 *
 * The last step of a row works on a copy padded with zeros, whose codes are 0 and do not count in the sum. |x * 127 /
 * m| is below 127.5, so the conversion to int32 rounds as rint does and cannot overflow. */
#include "act_quantize_row.h"
#include "x86.h"

enum { STEP = 32, LANES = 8, VECTORS = STEP / LANES };

BT_ALWAYS_INLINE __m256i magnitude(__m256 v) {
    return _mm256_and_si256(_mm256_castps_si256(v), _mm256_set1_epi32(0x7fffffff));
}

BT_ALWAYS_INLINE __m256i encode(__m256 v, __m256 inverse) {
    const __m256i code = _mm256_cvtps_epi32(_mm256_mul_ps(v, inverse));
    return _mm256_min_epi32(_mm256_max_epi32(code, _mm256_set1_epi32(-127)), _mm256_set1_epi32(127));
}

/* 32 codes as bytes in natural order: packing works inside 128-bit halves, the permutation undoes that. */
BT_ALWAYS_INLINE __m256i to_bytes(const __m256i code[VECTORS]) {
    const __m256i words = _mm256_packs_epi32(code[0], code[1]), more = _mm256_packs_epi32(code[2], code[3]);
    return _mm256_permutevar8x32_epi32(_mm256_packs_epi16(words, more), _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

/* Eight codes of plane 0, then of planes 1, 2 and 3. */
BT_ALWAYS_INLINE __m256i to_planes(__m256i bytes) {
    const __m256i gather =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    return _mm256_permutevar8x32_epi32(_mm256_shuffle_epi8(bytes, gather), _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

BT_ALWAYS_INLINE void store_planes(int8_t *q, int64_t k, __m256i bytes) {
    int64_t plane[4];
    _mm256_storeu_si256((__m256i *)plane, to_planes(bytes));
    for (int i = 0; i < 4; i++)
        memcpy(q + bt_plane_index(k + i), &plane[i], sizeof plane[i]);
}

BT_ALWAYS_INLINE void store_natural(int8_t *q, int64_t left, __m256i bytes) {
    int8_t step[STEP];
    _mm256_storeu_si256((__m256i *)(left < STEP ? step : q), bytes);
    if (left < STEP)
        memcpy(q, step, (size_t)left);
}

BT_ALWAYS_INLINE void store_codes(const bt_act_quantize *p, int8_t *q, int64_t k, __m256i bytes) {
    if (p->order == BT_ORDER_PLANES)
        store_planes(q, k, bytes);
    else
        store_natural(q + k, p->k - k, bytes);
}

/* The lowest digit of eight codes, which are left with the others; bt_next_digit(). */
BT_ALWAYS_INLINE __m256i take_digit(__m256i *code) {
    const __m256i rest = _mm256_srai_epi32(_mm256_add_epi32(*code, _mm256_set1_epi32(128)), 8);
    const __m256i digit = _mm256_sub_epi32(*code, _mm256_slli_epi32(rest, 8));
    *code = rest;
    return digit;
}

BT_ALWAYS_INLINE int32_t total(const __m256i code[VECTORS]) {
    const __m256i sum = _mm256_add_epi32(_mm256_add_epi32(code[0], code[1]), _mm256_add_epi32(code[2], code[3]));
    __m128i lanes = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
    lanes = _mm_add_epi32(lanes, _mm_shuffle_epi32(lanes, _MM_SHUFFLE(1, 0, 3, 2)));
    return _mm_cvtsi128_si32(_mm_add_epi32(lanes, _mm_shuffle_epi32(lanes, _MM_SHUFFLE(2, 3, 0, 1))));
}

BT_ALWAYS_INLINE void load_step(const char *x, size_t size, int type, int64_t k, int64_t end, __m256 v[VECTORS]) {
    uint32_t copy[STEP];
    const void *const from = bt_padded(x + k * (int64_t)size, size, end - k, STEP, copy);
    BT_UNROLL
    for (int i = 0; i < VECTORS; i++)
        v[i] = bt_load8(from, type, LANES * i);
}

/* The columns from k on, as they are to be quantised. */
BT_ALWAYS_INLINE void load_row(const bt_act_quantize *p, const bt_act_row *row, int64_t k, __m256 v[VECTORS]) {
    load_step(row->x, row->size, p->x_type, k, p->k, v);
    if (!row->norm)
        return;
    __m256 weight[VECTORS];
    load_step(row->norm, row->norm_size, p->norm_type, k, p->k, weight);
    BT_UNROLL
    for (int i = 0; i < VECTORS; i++)
        v[i] = _mm256_mul_ps(_mm256_mul_ps(v[i], _mm256_set1_ps(row->factor)), weight[i]);
}

static void square_sums(const bt_act_quantize *p, const bt_act_row *row, double lane[BT_NORM_LANES]) {
    for (int64_t k = 0; k < p->k; k += STEP) {
        __m256 v[VECTORS];
        float x[STEP];
        load_step(row->x, row->size, p->x_type, k, p->k, v);
        BT_UNROLL
        for (int i = 0; i < VECTORS; i++)
            _mm256_storeu_ps(x + LANES * i, v[i]);
        bt_add_squares(lane, k, x, STEP);
    }
}

static uint32_t absmax_bits(const bt_act_quantize *p, const bt_act_row *row) {
    uint32_t lane[LANES], most = 0;
    __m256i found = _mm256_setzero_si256();
    for (int64_t k = 0; k < p->k; k += STEP) {
        __m256 v[VECTORS];
        load_row(p, row, k, v);
        for (int i = 0; i < VECTORS; i++)
            found = _mm256_max_epu32(found, magnitude(v[i]));
    }
    _mm256_storeu_si256((__m256i *)lane, found);
    for (int i = 0; i < LANES; i++)
        most = lane[i] > most ? lane[i] : most;
    return most;
}

static int32_t encode_row(const bt_act_quantize *p, const bt_act_row *row, float inverse, int8_t *q) {
    int32_t lane[LANES], total = 0;
    __m256i sum = _mm256_setzero_si256();
    for (int64_t k = 0; k < p->k; k += STEP) {
        __m256 v[VECTORS];
        load_row(p, row, k, v);
        __m256i code[VECTORS];
        for (int i = 0; i < VECTORS; i++) {
            code[i] = encode(v[i], _mm256_set1_ps(inverse));
            sum = _mm256_add_epi32(sum, code[i]);
        }
        store_codes(p, q, k, to_bytes(code));
    }
    _mm256_storeu_si256((__m256i *)lane, sum);
    for (int i = 0; i < LANES; i++)
        total += lane[i];
    return total;
}

static void encode_digits(const bt_act_quantize *p, const bt_act_row *row, double inverse, int8_t *q, int32_t *sum) {
    const __m256d factor = _mm256_set1_pd(inverse);
    const __m256i most = _mm256_set1_epi32(bt_digits_max(p->digits));
    for (int64_t k = 0; k < p->k; k += STEP) {
        __m256 v[VECTORS];
        load_row(p, row, k, v);
        __m256i code[VECTORS], digit[VECTORS];
        for (int i = 0; i < VECTORS; i++)
            code[i] = bt_scaled_codes(v[i], factor, most);
        for (int d = 0; d < p->digits; d++) {
            for (int i = 0; i < VECTORS; i++)
                digit[i] = take_digit(&code[i]);
            store_codes(p, q + d * p->ldq, k, to_bytes(digit));
            sum[d] += total(digit);
        }
    }
}

bt_status bt_act_quantize_avx2(const bt_act_quantize *p, int64_t row_begin, int64_t row_end) {
    static const bt_act_passes passes = {square_sums, absmax_bits, encode_row, encode_digits};
    return bt_act_rows(p, row_begin, row_end, &passes);
}
