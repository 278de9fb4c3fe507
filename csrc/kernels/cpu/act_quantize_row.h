/* The frame of act_quantize on a CPU: the scale of a row, its padding, and what a row with NaN or Inf becomes.
 *
 * A variant brings the passes over a row: `absmax_bits`, the largest |x| by the order of its bits, in which every NaN
 * is above Inf and Inf above every number; `encode`, which writes the codes of a row and returns their sum; and
 * `encode_digits`, which writes its digits, ldq bytes apart, and adds up each. */
#ifndef BT_CPU_ACT_QUANTIZE_ROW_H
#define BT_CPU_ACT_QUANTIZE_ROW_H

#include "../act_quantize.h"
#include "half.h"

#include <math.h>
#include <string.h>

typedef struct bt_act_passes {
    uint32_t (*absmax_bits)(const bt_act_quantize *p, const char *x, size_t size);
    int32_t (*encode)(const bt_act_quantize *p, const char *x, size_t size, float inverse, int8_t *q);
    void (*encode_digits)(const bt_act_quantize *p, const char *x, size_t size, double inverse, int8_t *q,
                          int32_t *sum);
} bt_act_passes;

/* Zeros in the last block of planes, which the codes then fill in part. */
static inline void bt_pad_row(const bt_act_quantize *p, int8_t *q) {
    if (p->order == BT_ORDER_PLANES && p->k % BT_ACT_BLOCK != 0)
        memset(q + p->k / BT_ACT_BLOCK * BT_ACT_BLOCK, 0, BT_ACT_BLOCK);
}

static inline void bt_zero_row(const bt_act_quantize *p, int8_t *q) {
    memset(q, 0, (size_t)(p->order == BT_ORDER_PLANES ? bt_div_up(p->k, BT_ACT_BLOCK) * BT_ACT_BLOCK : p->k));
}

/* Codes, scale and sum of a row whose absmax has these bits. */
static inline void bt_encode_codes(const bt_act_quantize *p, int64_t row, const char *x, size_t size, uint32_t bits,
                                   const bt_act_passes *passes, int32_t *sum) {
    int8_t *q = p->q + row * p->ldq;
    if (bits >= 0x7f800000u) {
        p->scale[row] = NAN;
        bt_zero_row(p, q);
        return;
    }
    const float absmax = fmaxf(bt_bits_float(bits), 1e-5f);
    bt_pad_row(p, q);
    p->scale[row] = absmax / 127.0f;
    *sum = passes->encode(p, x, size, 127.0f / absmax, q);
}

static inline void bt_encode_digits(const bt_act_quantize *p, int64_t row, const char *x, size_t size, uint32_t bits,
                                    const bt_act_passes *passes, int32_t *sum) {
    int8_t *q = p->q + p->digits * row * p->ldq;
    const double absmax = (double)bt_bits_float(bits), most = (double)bt_digits_max(p->digits);
    if (bits == 0 || bits >= 0x7f800000u) {
        p->step[row] = bits == 0 ? 0.0 : (double)NAN;
        for (int d = 0; d < p->digits; d++)
            bt_zero_row(p, q + d * p->ldq);
        return;
    }
    for (int d = 0; d < p->digits; d++)
        bt_pad_row(p, q + d * p->ldq);
    p->step[row] = absmax / most;
    passes->encode_digits(p, x, size, most / absmax, q, sum);
}

static inline bt_status bt_act_rows(const bt_act_quantize *p, int64_t row_begin, int64_t row_end,
                                    const bt_act_passes *passes) {
    BT_ASSERT(p->x_type != BT_I8 && (p->order == BT_ORDER_NATURAL || p->ldq % BT_ACT_BLOCK == 0));
    const size_t size = p->x_type == BT_F32 ? sizeof(float) : sizeof(uint16_t);
    for (int64_t row = row_begin; row < row_end; row++) {
        const char *x = (const char *)p->x + row * p->ldx * (int64_t)size;
        const uint32_t bits = passes->absmax_bits(p, x, size);
        int32_t sum[BT_MAX_DIGITS] = {0};
        if (p->digits == 1)
            bt_encode_codes(p, row, x, size, bits, passes, sum);
        else
            bt_encode_digits(p, row, x, size, bits, passes, sum);
        if (p->sum)
            memcpy(p->sum + p->digits * row, sum, sizeof(int32_t) * (size_t)p->digits);
    }
    return BT_OK;
}

#endif
