/* The walk of ternary_pack over rows by vectors: pack_step packs `step` codes, and what is left of a row goes to the
 * scalar kernel. */
#ifndef BT_CPU_PACK_ROWS_H
#define BT_CPU_PACK_ROWS_H

#include "../ternary_pack.h"

typedef void bt_pack_step(const int8_t *codes, uint8_t *packed);

static inline __attribute__((always_inline)) bt_status bt_pack_rows(const bt_ternary_pack *p, int64_t row_begin,
                                                                    int64_t row_end, int64_t step,
                                                                    bt_pack_step *pack_step) {
    const int64_t whole = p->k / step * step;
    bt_ternary_pack rest = *p;
    rest.codes += whole, rest.packed += whole / 4, rest.k -= whole;
    for (int64_t r = row_begin; r < row_end; r++) {
        for (int64_t c = 0; c < whole; c += step)
            pack_step(p->codes + r * p->ldc + c, p->packed + r * p->ldw + c / 4);
        if (rest.k)
            bt_ternary_pack_scalar(&rest, r, r + 1);
    }
    return BT_OK;
}

#endif
