/* The 2-bit code: 00 = 0, 01 = +1, 10 = -1; four weights a byte, least significant bits first. */
#ifndef BT_CPU_TRIT_H
#define BT_CPU_TRIT_H

#include "../bt_common.h"

static inline unsigned bt_code_at(const uint8_t *row, int64_t k) {
    return (unsigned)row[k >> 2] >> (2 * (k & 3)) & 3u;
}

/* Low bit minus high bit. */
static inline int bt_trit(unsigned code) {
    return (int)(code & 1u) - (int)(code >> 1);
}

static inline int bt_trit_at(const uint8_t *row, int64_t k) {
    return bt_trit(bt_code_at(row, k));
}

#endif
