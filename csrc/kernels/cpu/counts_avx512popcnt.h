/* Counting the bits of a word as counts_scalar.h says it, by vpopcntq. */
#ifndef BT_CPU_COUNTS_AVX512POPCNT_H
#define BT_CPU_COUNTS_AVX512POPCNT_H

#define BT_WORD_BYTES 64
#include "trit_words.h"
#include "x86.h"

#define BT_COUNT_RUN INT64_MAX

BT_ALWAYS_INLINE bt_word bt_bits(bt_word v) {
    return (bt_word)_mm512_popcnt_epi64((__m512i)v);
}
BT_ALWAYS_INLINE bt_word bt_add_counts(bt_word a, bt_word b) {
    return a + b;
}
BT_ALWAYS_INLINE bt_word bt_widen(bt_word counts) {
    return counts;
}
BT_ALWAYS_INLINE void bt_totals(const bt_word *counts, int32_t *sums) {
    __m256i c[4];
    for (int i = 0; i < 4; i++)
        c[i] = _mm256_add_epi64(bt_low((__m512i)counts[i]), bt_high((__m512i)counts[i]));
    const __m256i low = _mm256_add_epi64(_mm256_unpacklo_epi64(c[0], c[1]), _mm256_unpackhi_epi64(c[0], c[1]));
    const __m256i high = _mm256_add_epi64(_mm256_unpacklo_epi64(c[2], c[3]), _mm256_unpackhi_epi64(c[2], c[3]));
    const __m256i both =
        _mm256_castps_si256(_mm256_shuffle_ps(_mm256_castsi256_ps(low), _mm256_castsi256_ps(high), 0x88));
    const __m128i all = _mm_add_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1));
    _mm_storeu_si128((__m128i *)sums, all);
}

#endif
