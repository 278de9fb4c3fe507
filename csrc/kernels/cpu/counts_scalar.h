/* Counting the bits of a word: bt_bits() in lanes that BT_COUNT_RUN words may be added to, bt_widen() as 64-bit ones,
 * bt_totals() the sums of the lanes of four of these, each an int32. */
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
static inline void bt_totals(const bt_word *counts, int32_t *sums) {
    for (int i = 0; i < 4; i++)
        sums[i] = (int32_t)(int64_t)counts[i][0];
}

#endif
