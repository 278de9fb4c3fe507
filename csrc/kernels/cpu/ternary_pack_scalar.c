#include "../ternary_pack.h"
#include "trit.h"

static unsigned encode(int8_t trit) {
    return trit == 0 ? 0u : trit == 1 ? 1u : trit == -1 ? 2u : 3u;
}

bt_status bt_ternary_pack_scalar(const bt_ternary_pack *p, int64_t row_begin, int64_t row_end) {
    for (int64_t r = row_begin; r < row_end; r++) {
        const int8_t *codes = p->codes + r * p->ldc;
        uint8_t *packed = p->packed + r * p->ldw;
        for (int64_t c = 0; c < p->k; c += 4) {
            unsigned byte = 0;
            for (int64_t i = 0; i < 4 && c + i < p->k; i++)
                byte |= encode(codes[c + i]) << (2 * i);
            packed[c / 4] = (uint8_t)byte;
        }
    }
    return BT_OK;
}
