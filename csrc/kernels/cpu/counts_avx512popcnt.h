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
BT_ALWAYS_INLINE uint64_t bt_total(bt_word counts) {
    const __m256i half = _mm256_add_epi64(bt_low((__m512i)counts), bt_high((__m512i)counts));
    const __m128i quarter = _mm_add_epi64(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
    return (uint64_t)_mm_cvtsi128_si64(quarter) + (uint64_t)_mm_extract_epi64(quarter, 1);
}

#endif
