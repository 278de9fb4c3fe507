/* ternary_quantize in steps of 32 columns; see the header for the rules, quantize_group.h for the frame.
 *
 * The eight lanes of a sum are two vectors of four. The last step of a row works on a copy padded with zeros: they add
 * nothing to a sum of magnitudes, and as no threshold is negative, none is kept. */
#include "quantize_group.h"
#include "x86.h"

enum { STEP = 32, LANES = 8, VECTORS = STEP / LANES, MIN_GROUP = 32 };

typedef struct sum_t {
    __m256d low, high;
} sum_t;

BT_ALWAYS_INLINE __m256 magnitude(__m256 v) {
    return _mm256_and_ps(v, _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff)));
}

BT_ALWAYS_INLINE void add8(sum_t *sum, __m256 a) {
    sum->low = _mm256_add_pd(sum->low, _mm256_cvtps_pd(_mm256_castps256_ps128(a)));
    sum->high = _mm256_add_pd(sum->high, _mm256_cvtps_pd(_mm256_extractf128_ps(a, 1)));
}

BT_ALWAYS_INLINE void add_squares8(sum_t *sum, __m256 v) {
    const __m256d low = _mm256_cvtps_pd(_mm256_castps256_ps128(v)), high = _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1));
    sum->low = _mm256_fmadd_pd(low, low, sum->low);
    sum->high = _mm256_fmadd_pd(high, high, sum->high);
}

BT_ALWAYS_INLINE void store_sum(double lane[8], sum_t sum) {
    _mm256_storeu_pd(lane, sum.low);
    _mm256_storeu_pd(lane + 4, sum.high);
}

BT_ALWAYS_INLINE uint32_t largest(__m256i v) {
    __m128i most = _mm_max_epu32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    most = _mm_max_epu32(most, _mm_shuffle_epi32(most, _MM_SHUFFLE(1, 0, 3, 2)));
    most = _mm_max_epu32(most, _mm_shuffle_epi32(most, _MM_SHUFFLE(2, 3, 0, 1)));
    return (uint32_t)_mm_cvtsi128_si32(most);
}

/* 32 codes to 8 bytes. The packs leave four codes of one byte in each 32-bit lane, where multiplications by 1, 4, 16
 * and 64 join them; the bytes are then the even ones in one half and the odd ones in the other. */
BT_ALWAYS_INLINE __m128i join_codes(const __m256i code[VECTORS]) {
    const __m256i words = _mm256_packs_epi32(code[0], code[1]), more = _mm256_packs_epi32(code[2], code[3]);
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_packs_epi16(words, more), _mm256_set1_epi16(0x0401));
    const __m256i bytes = _mm256_madd_epi16(pairs, _mm256_set1_epi32(0x00100001));
    const __m256i spread = _mm256_setr_epi8(0, -1, 4, -1, 8, -1, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, /* even */
                                            -1, 0, -1, 4, -1, 8, -1, 12, -1, -1, -1, -1, -1, -1, -1, -1);
    const __m256i apart = _mm256_shuffle_epi8(bytes, spread);
    return _mm_or_si128(_mm256_castsi256_si128(apart), _mm256_extracti128_si256(apart, 1));
}

BT_ALWAYS_INLINE void store_codes(uint8_t *packed, int64_t left, const __m256i code[VECTORS]) {
    uint8_t step[STEP / 4];
    _mm_storel_epi64((__m128i *)(left < STEP ? step : packed), join_codes(code));
    if (left < STEP)
        memcpy(packed, step, (size_t)bt_div_up(left, 4));
}

BT_ALWAYS_INLINE bt_group_stats measure_as(const bt_ternary_quantize *p, const bt_group *g, int type, size_t size) {
    uint32_t copy[STEP];
    const int mean = bt_needs_mean(p);
    double lane[8];
    sum_t sum = {_mm256_setzero_pd(), _mm256_setzero_pd()};
    __m256i most = _mm256_setzero_si256();
    for (int64_t r = g->r0; r < g->r1; r++) {
        const char *w = (const char *)p->w + (r * p->ldx + g->c0) * (int64_t)size;
        for (int64_t left = g->c1 - g->c0; left > 0; left -= STEP, w += STEP * size) {
            const void *from = bt_padded(w, size, left, STEP, copy);
            BT_UNROLL
            for (int i = 0; i < VECTORS; i++) {
                const __m256 a = magnitude(bt_load8(from, type, LANES * i));
                most = _mm256_max_epu32(most, _mm256_castps_si256(a));
                if (mean)
                    add8(&sum, a);
            }
        }
    }
    store_sum(lane, sum);
    return (bt_group_stats){largest(most), bt_sum_total(lane)};
}

/* One row of a group; returns how many it keeps. */
BT_ALWAYS_INLINE int64_t encode_row(const char *w, int64_t left, int type, size_t size, bt_keep_rule rule, bt_adds adds,
                                    uintptr_t ahead, uint8_t *packed, sum_t *sum) {
    const __m256 multiplier = _mm256_set1_ps(rule.multiplier), threshold = _mm256_set1_ps(rule.threshold);
    const __m256i one = _mm256_set1_epi32(1);
    uint32_t copy[STEP];
    int64_t kept = 0;
    for (; left > 0; left -= STEP, w += STEP * size, packed += STEP / 4) {
        const void *from = bt_padded(w, size, left, STEP, copy);
        __m256i code[VECTORS];
        BT_UNROLL
        for (int i = 0; i < VECTORS; i++) {
            bt_fetch(w, ahead + (uintptr_t)i * LANES * size);
            const __m256 v = bt_load8(from, type, LANES * i), a = magnitude(v);
            const __m256 keep = _mm256_cmp_ps(_mm256_mul_ps(a, multiplier), threshold, _CMP_GT_OQ);
            const __m256i negative = _mm256_srli_epi32(_mm256_castps_si256(v), 31);
            code[i] = _mm256_and_si256(_mm256_castps_si256(keep), _mm256_add_epi32(one, negative));
            kept += __builtin_popcount((unsigned)_mm256_movemask_ps(keep));
            if (adds == BT_ADDS_KEPT)
                add8(sum, _mm256_and_ps(a, keep));
            else if (adds == BT_ADDS_SQUARES)
                add_squares8(sum, v);
        }
        store_codes(packed, left, code);
    }
    return kept;
}

BT_ALWAYS_INLINE bt_group_sum encode_as(const bt_ternary_quantize *p, const bt_group *g, bt_keep_rule rule, int type,
                                        size_t size) {
    double lane[8];
    sum_t sum = {_mm256_setzero_pd(), _mm256_setzero_pd()};
    int64_t kept = 0;
    for (int64_t r = g->r0; r < g->r1; r++) {
        const char *w = (const char *)p->w + (r * p->ldx + g->c0) * (int64_t)size;
        kept += encode_row(w, g->c1 - g->c0, type, size, rule, bt_scale_adds(p->rule),
                           bt_fetch_ahead(p, g->c1 - g->c0, size), p->packed + r * p->ldw + g->c0 / 4, &sum);
    }
    store_sum(lane, sum);
    return (bt_group_sum){bt_sum_total(lane), kept};
}

static bt_group_stats measure(const bt_ternary_quantize *p, const bt_group *g) {
    return BT_BY_W_TYPE(measure_as, p, g);
}

static bt_group_sum encode(const bt_ternary_quantize *p, const bt_group *g, bt_keep_rule rule) {
    return BT_BY_W_TYPE(encode_as, p, g, rule);
}

bt_status bt_ternary_quantize_avx2(const bt_ternary_quantize *p, int64_t tile_begin, int64_t tile_end) {
    static const bt_group_passes passes = {measure, encode};
    return bt_quantize_by_vectors(p, tile_begin, tile_end, MIN_GROUP, &passes);
}
