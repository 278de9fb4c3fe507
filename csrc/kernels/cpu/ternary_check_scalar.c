#include "../ternary_check.h"
#include "trit.h"

/* Whether one of `count` bytes has both bits of a code set. Without an exit, so that a compiler can do several at once.
 */
static int any_reserved(const uint8_t *row, int64_t count) {
    uint8_t bad = 0;
    for (int64_t j = 0; j < count; j++)
        bad |= (uint8_t)(row[j] & row[j] >> 1);
    return (bad & 0x55) != 0;
}

/* Both bits of a code set, or a set bit in the padding. */
static int64_t first_illegal(const uint8_t *row, int64_t k) {
    const int64_t bytes = bt_div_up(k, 4);
    for (int64_t j = any_reserved(row, k / 4) ? 0 : k / 4; j < bytes; j++) {
        const unsigned padding = 4 * j + 4 <= k ? 0u : 0xffu << (2 * (k - 4 * j)) & 0xffu;
        const unsigned bad = (row[j] & (unsigned)row[j] >> 1 & 0x55u) | (row[j] & padding);
        for (int64_t i = 0; bad && i < 4; i++)
            if (bad >> (2 * i) & 3u)
                return 4 * j + i;
    }
    return -1;
}

bt_status bt_ternary_check_scalar(const bt_ternary_check *p, int64_t row_begin, int64_t row_end) {
    for (int64_t r = row_begin; r < row_end; r++)
        p->column[r] = first_illegal(p->w + r * p->ldw, p->k);
    return BT_OK;
}
