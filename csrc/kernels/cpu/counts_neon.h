/* Counting the bits of a word as counts_scalar.h says it: cnt gives counts of bytes, up to 8 each. */
#ifndef BT_CPU_COUNTS_NEON_H
#define BT_CPU_COUNTS_NEON_H

#define BT_WORD_BYTES 16
#include "trit_words.h"

#include <arm_neon.h>

#define BT_COUNT_RUN 31

static inline bt_word bt_bits(bt_word v) {
    return (bt_word)vcntq_u8((uint8x16_t)v);
}
static inline bt_word bt_add_counts(bt_word a, bt_word b) {
    return (bt_word)vaddq_u8((uint8x16_t)a, (uint8x16_t)b);
}
static inline bt_word bt_widen(bt_word counts) {
    return (bt_word)vpaddlq_u32(vpaddlq_u16(vpaddlq_u8((uint8x16_t)counts)));
}
static inline void bt_totals(const bt_word *counts, int32_t *sums) {
    for (int i = 0; i < 4; i++)
        sums[i] = (int32_t)(int64_t)(counts[i][0] + counts[i][1]);
}

#endif
