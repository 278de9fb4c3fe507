/* act_quantize in steps of 64 columns; see the header for the formula and the orders.
 *
 * The last step of a row works on a copy padded with zeros, whose codes are 0 and do not count in the sum. |x * 127 /
 * m| is below 127.5, so the conversion to int32 rounds as rint does and cannot overflow. */
#include "act_quantize_row.h"
#include "x86.h"

enum { STEP = 64, LANES = 16, VECTORS = STEP / LANES };

#if defined(BT_SIMDE)
BT_ALWAYS_INLINE __m512i to_int(__m512 v) {
    const __m512i bits = _mm512_castps_si512(v);
    return bt_join(_mm256_cvtps_epi32(_mm256_castsi256_ps(bt_low(bits))),
                   _mm256_cvtps_epi32(_mm256_castsi256_ps(bt_high(bits))));
}
BT_ALWAYS_INLINE __m512i shift_right_8(__m512i v) {
    return bt_join(_mm256_srai_epi32(bt_low(v), 8), _mm256_srai_epi32(bt_high(v), 8));
}
#else
BT_ALWAYS_INLINE __m512i shift_right_8(__m512i v) {
    return _mm512_srai_epi32(v, 8);
}
BT_ALWAYS_INLINE __m512i to_int(__m512 v) {
    return _mm512_cvtps_epi32(v);
}
#endif

BT_ALWAYS_INLINE __m512i magnitude(__m512 v) {
    return _mm512_and_si512(_mm512_castps_si512(v), _mm512_set1_epi32(0x7fffffff));
}

BT_ALWAYS_INLINE __m512i encode(__m512 v, __m512 inverse) {
    const __m512i code = to_int(_mm512_mul_ps(v, inverse));
    return _mm512_min_epi32(_mm512_max_epi32(code, _mm512_set1_epi32(-127)), _mm512_set1_epi32(127));
}

BT_ALWAYS_INLINE void store_planes(int8_t *q, int64_t k, const __m128i bytes[VECTORS]) {
    const __m128i gather = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    __m128 plane[4];
    BT_UNROLL
    for (int i = 0; i < VECTORS; i++)
        plane[i] = _mm_castsi128_ps(_mm_shuffle_epi8(bytes[i], gather));
    _MM_TRANSPOSE4_PS(plane[0], plane[1], plane[2], plane[3]);
    BT_UNROLL
    for (int i = 0; i < 4; i++)
        _mm_storeu_si128((__m128i *)(q + bt_plane_index(k + i)), _mm_castps_si128(plane[i]));
}

BT_ALWAYS_INLINE void store_natural(int8_t *q, int64_t left, const __m128i bytes[VECTORS]) {
    int8_t step[STEP];
    int8_t *const to = left < STEP ? step : q;
    BT_UNROLL
    for (int i = 0; i < VECTORS; i++)
        _mm_storeu_si128((__m128i *)(to + LANES * i), bytes[i]);
    if (left < STEP)
        memcpy(q, step, (size_t)left);
}

BT_ALWAYS_INLINE void store_codes(const bt_act_quantize *p, int8_t *q, int64_t k, const __m128i bytes[VECTORS]) {
    if (p->order == BT_ORDER_PLANES)
        store_planes(q, k, bytes);
    else
        store_natural(q + k, p->k - k, bytes);
}

/* The lowest digit of 16 codes, which are left with the others; bt_next_digit(). */
BT_ALWAYS_INLINE __m512i take_digit(__m512i *code) {
    const __m512i rest = shift_right_8(_mm512_add_epi32(*code, _mm512_set1_epi32(128)));
    const __m512i digit = _mm512_sub_epi32(*code, _mm512_slli_epi32(rest, 8));
    *code = rest;
    return digit;
}

BT_ALWAYS_INLINE void load_step(const char *x, size_t size, int type, int64_t k, int64_t end, __m512 v[VECTORS]) {
    uint32_t copy[STEP];
    const void *const from = bt_padded(x + k * (int64_t)size, size, end - k, STEP, copy);
    BT_UNROLL
    for (int i = 0; i < VECTORS; i++)
        v[i] = bt_load16(from, type, LANES * i);
}

/* The columns from k on, as they are to be quantised. */
BT_ALWAYS_INLINE void load_row(const bt_act_quantize *p, const bt_act_row *row, int64_t k, __m512 v[VECTORS]) {
    load_step(row->x, row->size, p->x_type, k, p->k, v);
    if (!row->norm)
        return;
    __m512 weight[VECTORS];
    load_step(row->norm, row->norm_size, p->norm_type, k, p->k, weight);
    BT_UNROLL
    for (int i = 0; i < VECTORS; i++)
        v[i] = _mm512_mul_ps(_mm512_mul_ps(v[i], _mm512_set1_ps(row->factor)), weight[i]);
}

static void square_sums(const bt_act_quantize *p, const bt_act_row *row, double lane[BT_NORM_LANES]) {
    for (int64_t k = 0; k < p->k; k += STEP) {
        __m512 v[VECTORS];
        float x[STEP];
        load_step(row->x, row->size, p->x_type, k, p->k, v);
        BT_UNROLL
        for (int i = 0; i < VECTORS; i++)
            _mm512_storeu_ps(x + LANES * i, v[i]);
        bt_add_squares(lane, k, x, STEP);
    }
}

static uint32_t absmax_bits(const bt_act_quantize *p, const bt_act_row *row) {
    uint32_t lane[LANES], most = 0;
    __m512i found = _mm512_setzero_si512();
    for (int64_t k = 0; k < p->k; k += STEP) {
        __m512 v[VECTORS];
        load_row(p, row, k, v);
        for (int i = 0; i < VECTORS; i++)
            found = _mm512_max_epu32(found, magnitude(v[i]));
    }
    _mm512_storeu_si512(lane, found);
    for (int i = 0; i < LANES; i++)
        most = lane[i] > most ? lane[i] : most;
    return most;
}

static int32_t encode_row(const bt_act_quantize *p, const bt_act_row *row, float inverse, int8_t *q) {
    int32_t lane[LANES], total = 0;
    __m512i sum = _mm512_setzero_si512();
    for (int64_t k = 0; k < p->k; k += STEP) {
        __m512 v[VECTORS];
        load_row(p, row, k, v);
        __m128i bytes[VECTORS];
        for (int i = 0; i < VECTORS; i++) {
            const __m512i code = encode(v[i], _mm512_set1_ps(inverse));
            bytes[i] = _mm512_cvtsepi32_epi8(code);
            sum = _mm512_add_epi32(sum, code);
        }
        store_codes(p, q, k, bytes);
    }
    _mm512_storeu_si512(lane, sum);
    for (int i = 0; i < LANES; i++)
        total += lane[i];
    return total;
}

static void encode_digits(const bt_act_quantize *p, const bt_act_row *row, double inverse, int8_t *q, int32_t *sum) {
    const __m256d factor = _mm256_set1_pd(inverse);
    const __m256i most = _mm256_set1_epi32(bt_digits_max(p->digits));
    int32_t lane[BT_MAX_DIGITS][LANES] = {{0}};
    for (int64_t k = 0; k < p->k; k += STEP) {
        __m512 v[VECTORS];
        load_row(p, row, k, v);
        __m512i code[VECTORS];
        BT_UNROLL
        for (int i = 0; i < VECTORS; i++) {
            const __m512i x = _mm512_castps_si512(v[i]);
            const __m256 low = _mm256_castsi256_ps(bt_low(x)), high = _mm256_castsi256_ps(bt_high(x));
            code[i] = bt_join(bt_scaled_codes(low, factor, most), bt_scaled_codes(high, factor, most));
        }
        for (int d = 0; d < p->digits; d++) {
            __m512i total = _mm512_loadu_si512(lane[d]);
            __m128i bytes[VECTORS];
            BT_UNROLL
            for (int i = 0; i < VECTORS; i++) {
                const __m512i digit = take_digit(&code[i]);
                bytes[i] = _mm512_cvtsepi32_epi8(digit);
                total = _mm512_add_epi32(total, digit);
            }
            store_codes(p, q + d * p->ldq, k, bytes);
            _mm512_storeu_si512(lane[d], total);
        }
    }
    for (int d = 0; d < p->digits; d++)
        for (int i = 0; i < LANES; i++)
            sum[d] += lane[d][i];
}

bt_status bt_act_quantize_avx512(const bt_act_quantize *p, int64_t row_begin, int64_t row_end) {
    static const bt_act_passes passes = {square_sums, absmax_bits, encode_row, encode_digits};
    return bt_act_rows(p, row_begin, row_end, &passes);
}
