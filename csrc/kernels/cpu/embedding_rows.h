/* The frame of ternary_embedding on a CPU: one plane is unpacked in place; more are unpacked to fp32, some columns of
 * one scale group at a time, and added up. */
#ifndef BT_CPU_EMBEDDING_ROWS_H
#define BT_CPU_EMBEDDING_ROWS_H

#include "../ternary_embedding.h"
#include "unpack_rows.h"

enum { BT_EMBEDDING_STEP = 256 };

static inline void bt_embedding_nan(const bt_ternary_embedding *p, int64_t i) {
    for (int64_t c = 0; c < p->k; c++)
        bt_store(p->y, p->y_type, i * p->ldy + c, bt_bits_float(0x7fc00000u));
}

static inline __attribute__((always_inline)) void bt_embedding_planes(const bt_ternary_embedding *p, int64_t i,
                                                                      bt_unpack_values *v, bt_unpack_fill *fill) {
    double sum[BT_EMBEDDING_STEP];
    float value[BT_EMBEDDING_STEP];
    for (int64_t c = 0, count; c < p->k; c += count) {
        const int64_t g = c / p->group, left = (g + 1) * p->group - c;
        count = left < BT_EMBEDDING_STEP ? left : BT_EMBEDDING_STEP;
        for (int d = 0; d < p->depth; d++) {
            const int64_t row = d * p->n + p->index[i];
            bt_unpack_scale(v, p->scale[row * p->lds + g], BT_F32);
            fill(p->w + row * p->ldw + c / 4, (char *)value, 0, count, v);
            for (int64_t j = 0; j < count; j++)
                sum[j] = d ? sum[j] + (double)value[j] : (double)value[j];
        }
        for (int64_t j = 0; j < count; j++)
            value[j] = (float)sum[j];
        bt_store_many(p->y, p->y_type, i * p->ldy + c, count, value);
    }
}

static inline __attribute__((always_inline)) bt_status bt_embedding_rows(const bt_ternary_embedding *p,
                                                                         int64_t row_begin, int64_t row_end,
                                                                         bt_unpack_fill *fill) {
    bt_unpack_values v;
    bt_unpack_places(&v, p->depth == 1 ? p->y_type : BT_F32);
    for (int64_t i = row_begin; i < row_end; i++) {
        const int64_t row = p->index[i];
        if (row < 0 || row >= p->n)
            bt_embedding_nan(p, i);
        else if (p->depth == 1)
            bt_unpack_row(p->w + row * p->ldw, p->scale + row * p->lds, (char *)p->y + i * p->ldy * v.size, p->k,
                          p->group, p->y_type, &v, fill);
        else
            bt_embedding_planes(p, i, &v, fill);
    }
    return BT_OK;
}

#endif
