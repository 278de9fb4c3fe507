/* ternary_quantize in steps of 64 columns; see the header for the rules, quantize_group.h for the frame.
 *
 * The eight lanes of a sum are one vector. The last step of a row works on a copy padded with zeros: they add nothing
 * to a sum of magnitudes, and as no threshold is negative, none is kept. */
#include "quantize_group.h"
#include "x86.h"

enum { STEP = 64, LANES = 16, VECTORS = STEP / LANES, MIN_GROUP = 32 };

#if defined(BT_SIMDE)
BT_ALWAYS_INLINE __m256 low_ps(__m512 v) {
    return _mm256_castsi256_ps(bt_low(_mm512_castps_si512(v)));
}
BT_ALWAYS_INLINE __m256 high_ps(__m512 v) {
    return _mm256_castsi256_ps(bt_high(_mm512_castps_si512(v)));
}
BT_ALWAYS_INLINE __m512d to_double(__m256 v) {
    const __m256d low = _mm256_cvtps_pd(_mm256_castps256_ps128(v)), high = _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1));
    return _mm512_castsi512_pd(bt_join(_mm256_castpd_si256(low), _mm256_castpd_si256(high)));
}
#else
BT_ALWAYS_INLINE __m256 low_ps(__m512 v) {
    return _mm512_castps512_ps256(v);
}
BT_ALWAYS_INLINE __m256 high_ps(__m512 v) {
    return _mm512_extractf32x8_ps(v, 1);
}
BT_ALWAYS_INLINE __m512d to_double(__m256 v) {
    return _mm512_cvtps_pd(v);
}
#endif

BT_ALWAYS_INLINE __m512 magnitude(__m512 v) {
    const __m512i bits = _mm512_castps_si512(v);
    return _mm512_castsi512_ps(_mm512_and_si512(bits, _mm512_set1_epi32(0x7fffffff)));
}

BT_ALWAYS_INLINE __m512d add16(__m512d sum, __m512 a) {
    return _mm512_add_pd(_mm512_add_pd(sum, to_double(low_ps(a))), to_double(high_ps(a)));
}

BT_ALWAYS_INLINE __m512d add_squares16(__m512d sum, __m512 v) {
    const __m512d low = to_double(low_ps(v)), high = to_double(high_ps(v));
    return _mm512_fmadd_pd(high, high, _mm512_fmadd_pd(low, low, sum));
}

BT_ALWAYS_INLINE uint32_t largest(__m512 v) {
    const __m256i half = _mm256_max_epu32(_mm256_castps_si256(low_ps(v)), _mm256_castps_si256(high_ps(v)));
    __m128i most = _mm_max_epu32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
    most = _mm_max_epu32(most, _mm_shuffle_epi32(most, _MM_SHUFFLE(1, 0, 3, 2)));
    most = _mm_max_epu32(most, _mm_shuffle_epi32(most, _MM_SHUFFLE(2, 3, 0, 1)));
    return (uint32_t)_mm_cvtsi128_si32(most);
}

/* 64 codes to 16 bytes. The packs leave four codes of one byte in each 32-bit lane; the shuffle transposes the 4 x 4
 * bytes of four vectors with four 128-bit quarters. */
BT_ALWAYS_INLINE __m128i join_codes(const __m512i code[VECTORS]) {
    const __m512i words = _mm512_packs_epi32(code[0], code[1]), more = _mm512_packs_epi32(code[2], code[3]);
    const __m128i bytes = bt_join4(_mm512_packs_epi16(words, more));
    return _mm_shuffle_epi8(bytes, _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
}

BT_ALWAYS_INLINE void store_codes(uint8_t *packed, int64_t left, const __m512i code[VECTORS]) {
    uint8_t step[STEP / 4];
    _mm_storeu_si128((__m128i *)(left < STEP ? step : packed), join_codes(code));
    if (left < STEP)
        memcpy(packed, step, (size_t)bt_div_up(left, 4));
}

BT_ALWAYS_INLINE bt_group_stats measure_as(const bt_ternary_quantize *p, const bt_group *g, int type, size_t size) {
    uint32_t copy[STEP];
    const int mean = bt_needs_mean(p);
    double lane[8];
    __m512d sum = _mm512_setzero_pd();
    __m512i most = _mm512_setzero_si512();
    for (int64_t r = g->r0; r < g->r1; r++) {
        const char *w = (const char *)p->w + (r * p->ldx + g->c0) * (int64_t)size;
        for (int64_t left = g->c1 - g->c0; left > 0; left -= STEP, w += STEP * size) {
            const void *from = bt_padded(w, size, left, STEP, copy);
            BT_UNROLL
            for (int i = 0; i < VECTORS; i++) {
                const __m512 a = magnitude(bt_load16(from, type, LANES * i));
                most = _mm512_max_epu32(most, _mm512_castps_si512(a));
                if (mean)
                    sum = add16(sum, a);
            }
        }
    }
    _mm512_storeu_pd(lane, sum);
    return (bt_group_stats){largest(_mm512_castsi512_ps(most)), bt_sum_total(lane)};
}

/* One row of a group; returns how many it keeps. */
BT_ALWAYS_INLINE int64_t encode_row(const char *w, int64_t left, int type, size_t size, bt_keep_rule rule, bt_adds adds,
                                    uintptr_t ahead, uint8_t *packed, __m512d *sum) {
    const __m512 multiplier = _mm512_set1_ps(rule.multiplier), threshold = _mm512_set1_ps(rule.threshold);
    const __m512i one = _mm512_set1_epi32(1);
    uint32_t copy[STEP];
    int64_t kept = 0;
    for (; left > 0; left -= STEP, w += STEP * size, packed += STEP / 4) {
        const void *from = bt_padded(w, size, left, STEP, copy);
        __m512i code[VECTORS];
        BT_UNROLL
        for (int i = 0; i < VECTORS; i++) {
            bt_fetch(w, ahead + (uintptr_t)i * LANES * size);
            const __m512 v = bt_load16(from, type, LANES * i), a = magnitude(v);
            const __mmask16 keep = _mm512_cmp_ps_mask(_mm512_mul_ps(a, multiplier), threshold, _CMP_GT_OQ);
            const __m512i negative = _mm512_srli_epi32(_mm512_castps_si512(v), 31);
            code[i] = _mm512_maskz_mov_epi32(keep, _mm512_add_epi32(one, negative));
            kept += __builtin_popcount(keep);
            if (adds == BT_ADDS_KEPT)
                *sum = add16(*sum, _mm512_maskz_mov_ps(keep, a));
            else if (adds == BT_ADDS_SQUARES)
                *sum = add_squares16(*sum, v);
        }
        store_codes(packed, left, code);
    }
    return kept;
}

BT_ALWAYS_INLINE bt_group_sum encode_as(const bt_ternary_quantize *p, const bt_group *g, bt_keep_rule rule, int type,
                                        size_t size) {
    double lane[8];
    __m512d sum = _mm512_setzero_pd();
    int64_t kept = 0;
    for (int64_t r = g->r0; r < g->r1; r++) {
        const char *w = (const char *)p->w + (r * p->ldx + g->c0) * (int64_t)size;
        kept += encode_row(w, g->c1 - g->c0, type, size, rule, bt_scale_adds(p->rule),
                           bt_fetch_ahead(p, g->c1 - g->c0, size), p->packed + r * p->ldw + g->c0 / 4, &sum);
    }
    _mm512_storeu_pd(lane, sum);
    return (bt_group_sum){bt_sum_total(lane), kept};
}

static bt_group_stats measure(const bt_ternary_quantize *p, const bt_group *g) {
    return BT_BY_W_TYPE(measure_as, p, g);
}

static bt_group_sum encode(const bt_ternary_quantize *p, const bt_group *g, bt_keep_rule rule) {
    return BT_BY_W_TYPE(encode_as, p, g, rule);
}

bt_status bt_ternary_quantize_avx512(const bt_ternary_quantize *p, int64_t tile_begin, int64_t tile_end) {
    static const bt_group_passes passes = {measure, encode};
    return bt_quantize_by_vectors(p, tile_begin, tile_end, MIN_GROUP, &passes);
}
