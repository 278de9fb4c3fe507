/* The frame of ternary_unpack on a CPU: the groups of a row, and what their codes become. ternary_embedding uses it
 * too.
 *
 * A variant brings bt_unpack_fill, for the columns that share a scale. One that works on vectors looks at bytes alone,
 * whatever their type: byte b of a vector belongs to column b / size, whose code is in the bits `bits` of packed byte
 * `from`, and takes its byte of one of three values. Shorter vectors use the first of these places. */
#ifndef BT_CPU_UNPACK_ROWS_H
#define BT_CPU_UNPACK_ROWS_H

#include "../ternary_unpack.h"
#include "half.h"
#include "trit.h"

#include <string.h>

enum { BT_UNPACK_VECTOR = 64 };

typedef struct bt_unpack_values {
    uint32_t of[4]; /* what the four codes become, repeated to four bytes; 11 counts as 0 */
    int size;       /* bytes of an output */
    uint8_t from[BT_UNPACK_VECTOR], bits[BT_UNPACK_VECTOR];
} bt_unpack_values;

/* Columns [begin, end) of a row; begin is a multiple of 4. */
typedef void bt_unpack_fill(const uint8_t *w, char *y, int64_t begin, int64_t end, const bt_unpack_values *v);

/* That of each variant, in ternary_unpack_<variant>.c. */
bt_unpack_fill bt_unpack_fill_scalar, bt_unpack_fill_avx2, bt_unpack_fill_avx512, bt_unpack_fill_neon;

/* bt_unpack_fill from one that takes the size, which is a constant of each of its copies. */
#define BT_UNPACK_BY_SIZE(function, w, y, begin, end, v)                                                               \
    ((v)->size == 1   ? function(w, y, begin, end, v, 1)                                                               \
     : (v)->size == 2 ? function(w, y, begin, end, v, 2)                                                               \
                      : function(w, y, begin, end, v, 4))

static inline void bt_unpack_columns(const uint8_t *w, char *y, int64_t begin, int64_t end, const bt_unpack_values *v,
                                     int size) {
    int64_t c = begin;
    for (; c + 4 <= end; c += 4)
        for (unsigned i = 0; i < 4; i++)
            memcpy(y + (c + i) * size, &v->of[w[c / 4] >> (2 * i) & 3u], (size_t)size);
    for (; c < end; c++)
        memcpy(y + c * size, &v->of[bt_code_at(w, c)], (size_t)size);
}

/* `count` packed bytes, up to eight. */
static inline uint64_t bt_unpack_load(const uint8_t *w, int count) {
    uint64_t bytes = 0;
    memcpy(&bytes, w, (size_t)count);
    return bytes;
}

static inline uint32_t bt_unpack_value(float value, int y_type) {
    if (y_type == BT_F32)
        return bt_float_bits(value);
    if (y_type == BT_I8)
        return (uint8_t)(int8_t)value * 0x01010101u;
    return (y_type == BT_F16 ? bt_to_f16(value) : bt_to_bf16(value)) * 0x00010001u;
}

static inline void bt_unpack_places(bt_unpack_values *v, int y_type) {
    v->size = y_type == BT_I8 ? 1 : y_type == BT_F32 ? 4 : 2;
    for (int b = 0; b < BT_UNPACK_VECTOR; b++) {
        v->from[b] = (uint8_t)(b / (4 * v->size));
        v->bits[b] = (uint8_t)(3 << 2 * (b / v->size % 4));
    }
}

static inline void bt_unpack_scale(bt_unpack_values *v, float scale, int y_type) {
    v->of[0] = v->of[3] = bt_unpack_value(0.0f * scale, y_type);
    v->of[1] = bt_unpack_value(scale, y_type);
    v->of[2] = bt_unpack_value(-scale, y_type);
}

/* A row of k columns, whose scales are those at `scale` or 1. */
static inline __attribute__((always_inline)) void bt_unpack_row(const uint8_t *w, const float *scale, char *y,
                                                                int64_t k, int64_t group, int y_type,
                                                                bt_unpack_values *v, bt_unpack_fill *fill) {
    for (int64_t begin = 0, g = 0; begin < k; begin += group, g++) {
        bt_unpack_scale(v, scale ? scale[g] : 1.0f, y_type);
        fill(w, y, begin, begin + group < k ? begin + group : k, v);
    }
}

static inline __attribute__((always_inline)) bt_status bt_unpack_rows(const bt_ternary_unpack *p, int64_t row_begin,
                                                                      int64_t row_end, bt_unpack_fill *fill) {
    bt_unpack_values v;
    bt_unpack_places(&v, p->y_type);
    for (int64_t r = row_begin; r < row_end; r++)
        bt_unpack_row(p->w + r * p->ldw, p->scale ? p->scale + r * p->lds : NULL, (char *)p->y + r * p->ldy * v.size,
                      p->k, p->group, p->y_type, &v, fill);
    return BT_OK;
}

#endif
