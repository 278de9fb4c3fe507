/* Counting the bits of a word as counts_scalar.h says it: a table of nibbles gives counts of bytes, up to 8 each. */
#ifndef BT_CPU_COUNTS_AVX2_H
#define BT_CPU_COUNTS_AVX2_H

#define BT_WORD_BYTES 32
#include "x86_counts.h"

#define BT_COUNT_RUN 31

BT_ALWAYS_INLINE bt_word bt_bits(bt_word v) {
    const __m256i table = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4, 0, 1, 1, 2, 1, 2, 2, 3, 1, 2,
                                           2, 3, 2, 3, 3, 4);
    const __m256i nibble = _mm256_set1_epi8(15);
    const __m256i low = _mm256_and_si256((__m256i)v, nibble);
    const __m256i high = _mm256_and_si256(_mm256_srli_epi16((__m256i)v, 4), nibble);
    return (bt_word)_mm256_add_epi8(_mm256_shuffle_epi8(table, low), _mm256_shuffle_epi8(table, high));
}
BT_ALWAYS_INLINE bt_word bt_add_counts(bt_word a, bt_word b) {
    return (bt_word)_mm256_add_epi8((__m256i)a, (__m256i)b);
}
BT_ALWAYS_INLINE bt_word bt_widen(bt_word counts) {
    return (bt_word)_mm256_sad_epu8((__m256i)counts, _mm256_setzero_si256());
}

#endif
