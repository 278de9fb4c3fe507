/* Counting the bits of a word as counts_scalar.h says it, by vpopcntq. */
#ifndef BT_CPU_COUNTS_AVX512POPCNT_H
#define BT_CPU_COUNTS_AVX512POPCNT_H

#define BT_WORD_BYTES 64
#include "x86_counts.h"

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

#endif
