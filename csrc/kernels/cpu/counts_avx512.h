/* Counting the bits of a word as counts_scalar.h says it: a table of nibbles gives counts of bytes, up to 8 each. */
#ifndef BT_CPU_COUNTS_AVX512_H
#define BT_CPU_COUNTS_AVX512_H

#define BT_WORD_BYTES 64
#include "x86_counts.h"

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

#endif
