/* The 2-bit code, for CPU and CUDA kernels: 00 = 0, 01 = +1, 10 = -1; four weights a byte, least significant bits
 * first. */
#ifndef BT_CPU_TRIT_H
#define BT_CPU_TRIT_H

#include "../bt_common.h"

BT_INLINE unsigned bt_code_at(const uint8_t *row, int64_t k) {
    return (unsigned)row[k >> 2] >> (2 * (k & 3)) & 3u;
}

/* Low bit minus high bit. */
BT_INLINE int bt_trit(unsigned code) {
    return (int)(code & 1u) - (int)(code >> 1);
}

BT_INLINE int bt_trit_at(const uint8_t *row, int64_t k) {
    return bt_trit(bt_code_at(row, k));
}

#endif
