/* The frame of bitplane_pack on a CPU, for words of BT_WORD_BYTES bytes. */
#ifndef BT_CPU_PLANE_ROWS_H
#define BT_CPU_PLANE_ROWS_H

#include "../bitplane_pack.h"
#include "../trit_elementwise.h"
#include "trit_words.h"

static inline __attribute__((always_inline)) void bt_plane_block(const uint8_t *c, uint8_t *planes) {
    const bt_word LOW = bt_low_bits();
    for (int j = 0; j < BT_PLANE_BYTES; j += BT_WORD_BYTES) {
        const bt_word first = bt_load_word(c + j), second = bt_load_word(c + BT_PLANE_BYTES + j);
        bt_store_word(planes + j, BT_TRIT_EITHER(first) | BT_TRIT_HIGH(second | second << 1));
        bt_store_word(planes + BT_PLANE_BYTES + j, BT_TRIT_LOW(first >> 1) | BT_TRIT_HIGH(second));
    }
}

static inline __attribute__((always_inline)) bt_status bt_bitplane_pack_rows(const bt_bitplane_pack *p,
                                                                             int64_t row_begin, int64_t row_end) {
    const int64_t whole = p->k / BT_PLANE_TRITS, left = bt_div_up(p->k, 4) - whole * BT_PLANE_BLOCK_BYTES;
    for (int64_t row = row_begin; row < row_end; row++) {
        const uint8_t *const w = p->w + row * p->ldw;
        uint8_t *const planes = p->planes + row * p->ldp;
        for (int64_t block = 0; block < whole; block++)
            bt_plane_block(w + block * BT_PLANE_BLOCK_BYTES, planes + block * BT_PLANE_BLOCK_BYTES);
        if (left > 0) {
            uint8_t last[BT_PLANE_BLOCK_BYTES] = {0};
            memcpy(last, w + whole * BT_PLANE_BLOCK_BYTES, (size_t)left);
            last[left - 1] &= bt_trit_last_mask(p->k);
            bt_plane_block(last, planes + whole * BT_PLANE_BLOCK_BYTES);
        }
    }
    return BT_OK;
}

#endif
