#include "../ternary_unpack.h"
#include "half.h"
#include "trit.h"

bt_status bt_ternary_unpack_scalar(const bt_ternary_unpack *p, int64_t row_begin, int64_t row_end) {
    for (int64_t r = row_begin; r < row_end; r++) {
        const uint8_t *w = p->w + r * p->ldw;
        const int64_t y = r * p->ldy;
        if (p->y_type == BT_I8) {
            int8_t *codes = (int8_t *)p->y + y;
            for (int64_t c = 0; c < p->k; c++)
                codes[c] = (int8_t)bt_trit_at(w, c);
            continue;
        }
        for (int64_t begin = 0, g = 0; begin < p->k; begin += p->group, g++) {
            const float scale = p->scale ? p->scale[r * p->lds + g] : 1.0f;
            const float value[4] = {0.0f * scale, scale, -scale, 0.0f * scale};
            for (int64_t c = begin; c < begin + p->group && c < p->k; c++)
                bt_store(p->y, p->y_type, y + c, value[bt_code_at(w, c)]);
        }
    }
    return BT_OK;
}
