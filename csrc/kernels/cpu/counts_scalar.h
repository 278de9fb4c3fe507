/* Counting the bits of a word: bt_bits() in lanes that BT_COUNT_RUN words may be added to, bt_widen() as 64-bit ones,
 * bt_total() the sum of these. */
#ifndef BT_CPU_COUNTS_SCALAR_H
#define BT_CPU_COUNTS_SCALAR_H

#define BT_WORD_BYTES 8
#include "trit_words.h"

#define BT_COUNT_RUN INT64_MAX

static inline bt_word bt_bits(bt_word v) {
    return (bt_word){(uint64_t)__builtin_popcountll(v[0])};
}
static inline bt_word bt_add_counts(bt_word a, bt_word b) {
    return a + b;
}
static inline bt_word bt_widen(bt_word counts) {
    return counts;
}
static inline uint64_t bt_total(bt_word counts) {
    return counts[0];
}

#endif
