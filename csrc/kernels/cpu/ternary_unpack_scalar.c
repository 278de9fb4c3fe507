#include "../ternary_unpack.h"
#include "half.h"
#include "trit.h"

#include <string.h>

/* What each of the four codes becomes, in the output's type; 11 counts as 0. */
typedef struct values_t {
    unsigned char of[4][4];
} values_t;

static values_t make_values(int y_type, float scale) {
    const float value[4] = {0.0f * scale, scale, -scale, 0.0f * scale};
    values_t v;
    for (int code = 0; code < 4; code++)
        if (y_type == BT_I8)
            v.of[code][0] = (unsigned char)(int8_t)value[code];
        else
            bt_store(v.of[code], y_type, 0, value[code]);
    return v;
}

/* Columns [begin, end) of a row; begin is a multiple of 4. `size` is a constant at each call, so the copies become
 * stores. */
static inline void fill(const uint8_t *w, char *y, int64_t begin, int64_t end, const values_t *v, size_t size) {
    int64_t c = begin;
    for (; c + 4 <= end; c += 4)
        for (unsigned i = 0; i < 4; i++)
            memcpy(y + (c + i) * (int64_t)size, v->of[w[c / 4] >> (2 * i) & 3u], size);
    for (; c < end; c++)
        memcpy(y + c * (int64_t)size, v->of[bt_code_at(w, c)], size);
}

static void fill_typed(const uint8_t *w, void *y, int64_t begin, int64_t end, const values_t *v, int y_type) {
    if (y_type == BT_I8)
        fill(w, (char *)y, begin, end, v, 1);
    else if (y_type == BT_F32)
        fill(w, (char *)y, begin, end, v, 4);
    else
        fill(w, (char *)y, begin, end, v, 2);
}

bt_status bt_ternary_unpack_scalar(const bt_ternary_unpack *p, int64_t row_begin, int64_t row_end) {
    const int64_t size = p->y_type == BT_I8 ? 1 : p->y_type == BT_F32 ? 4 : 2;
    for (int64_t r = row_begin; r < row_end; r++) {
        char *y = (char *)p->y + r * p->ldy * size;
        for (int64_t begin = 0, g = 0; begin < p->k; begin += p->group, g++) {
            const values_t v = make_values(p->y_type, p->scale ? p->scale[r * p->lds + g] : 1.0f);
            const int64_t end = begin + p->group < p->k ? begin + p->group : p->k;
            fill_typed(p->w + r * p->ldw, y, begin, end, &v, p->y_type);
        }
    }
    return BT_OK;
}
