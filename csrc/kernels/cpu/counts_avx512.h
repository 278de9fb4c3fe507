/* Counting the bits of a word as counts_scalar.h says it: a table of nibbles gives counts of bytes, up to 8 each. */
#ifndef BT_CPU_COUNTS_AVX512_H
#define BT_CPU_COUNTS_AVX512_H

#define BT_WORD_BYTES 64
#include "trit_words.h"
#include "x86.h"

#define BT_COUNT_RUN 31

BT_ALWAYS_INLINE bt_word bt_bits(bt_word v) {
    const __m512i table = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
    const __m512i nibble = _mm512_set1_epi8(15);
    const __m512i low = _mm512_and_si512((__m512i)v, nibble);
    const __m512i high = _mm512_and_si512(_mm512_srli_epi16((__m512i)v, 4), nibble);
    return (bt_word)_mm512_add_epi8(_mm512_shuffle_epi8(table, low), _mm512_shuffle_epi8(table, high));
}
BT_ALWAYS_INLINE bt_word bt_add_counts(bt_word a, bt_word b) {
    return (bt_word)_mm512_add_epi8((__m512i)a, (__m512i)b);
}
BT_ALWAYS_INLINE bt_word bt_widen(bt_word counts) {
    return (bt_word)_mm512_sad_epu8((__m512i)counts, _mm512_setzero_si512());
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
