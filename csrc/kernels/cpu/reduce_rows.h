/* The frame of trit_reduce on a CPU, for the words and counts of the header that was included before. */
#ifndef BT_CPU_REDUCE_ROWS_H
#define BT_CPU_REDUCE_ROWS_H

#include "../trit_elementwise.h"
#include "../trit_reduce.h"

typedef struct bt_counts {
    bt_word plus, minus; /* of bt_bits(), or of bt_widen() */
} bt_counts;

/* Where a, or a times b, is +1 and where it is -1: a bit for each. */
static inline __attribute__((always_inline)) void bt_count_word(bt_word a, bt_word b, int product, bt_counts *sums) {
    const bt_word LOW = bt_low_bits();
    sums->plus = bt_add_counts(sums->plus, bt_bits(product ? a & b : BT_TRIT_LOW(a)));
    sums->minus = bt_add_counts(sums->minus, bt_bits(product ? a & BT_TRIT_SWAP(b) : BT_TRIT_HIGH(a)));
}

static inline void bt_widen_counts(bt_counts *sums, bt_counts *wide) {
    wide->plus += bt_widen(sums->plus);
    wide->minus += bt_widen(sums->minus);
    *sums = (bt_counts){{0}, {0}};
}

/* The last of `bytes` bytes counts where `mask` has a bit. */
static inline __attribute__((always_inline)) void bt_count_bytes(const uint8_t *a, const uint8_t *b, int64_t bytes,
                                                                 unsigned mask, int product, int64_t *counts) {
    const int64_t words = (bytes - 1) / BT_WORD_BYTES, left = bytes - words * BT_WORD_BYTES;
    bt_counts wide = {{0}, {0}}, sums = {{0}, {0}};
    for (int64_t w = 0; w < words;) {
        const int64_t end = words - w < BT_COUNT_RUN ? words : w + BT_COUNT_RUN;
        for (; w < end; w++)
            bt_count_word(bt_load_word(a + w * BT_WORD_BYTES), bt_load_word((product ? b : a) + w * BT_WORD_BYTES),
                          product, &sums);
        bt_widen_counts(&sums, &wide);
    }
    uint8_t last[BT_WORD_BYTES] = {0};
    memcpy(last, a + words * BT_WORD_BYTES, (size_t)left);
    last[left - 1] &= (uint8_t)mask;
    bt_count_word(bt_load_word(last), bt_load_part((product ? b : a) + words * BT_WORD_BYTES, left), product, &sums);
    bt_widen_counts(&sums, &wide);
    const bt_word lanes[4] = {wide.plus, wide.minus};
    int32_t total[4];
    bt_totals(lanes, total);
    counts[0] = total[0];
    counts[1] = total[1];
}

static inline __attribute__((always_inline)) bt_status bt_trit_reduce_tiles(const bt_trit_reduce *p, int64_t tile_begin,
                                                                            int64_t tile_end) {
    const int64_t chunks = bt_reduce_chunks(p->k), row_bytes = bt_div_up(p->k, 4);
    for (int64_t tile = tile_begin; tile < tile_end; tile++) {
        const int64_t row = tile / chunks, begin = tile % chunks * BT_REDUCE_CHUNK, left = row_bytes - begin;
        const int64_t bytes = left < BT_REDUCE_CHUNK ? left : (int64_t)BT_REDUCE_CHUNK;
        const unsigned mask = bytes == left ? bt_trit_last_mask(p->k) : 0xffu;
        const uint8_t *const a = p->a + row * p->lda + begin;
        int64_t *const counts = p->counts + 2 * tile;
        counts[0] = counts[1] = 0;
        if (bytes == 0)
            continue;
        if (p->b)
            bt_count_bytes(a, p->b + row * p->ldb + begin, bytes, mask, 1, counts);
        else
            bt_count_bytes(a, NULL, bytes, mask, 0, counts);
    }
    return BT_OK;
}

#endif
