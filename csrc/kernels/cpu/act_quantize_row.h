/* The frame of act_quantize on a CPU: the scale of a row, its padding, and what a row with NaN or Inf becomes.
 *
 * A variant brings the passes over a row: `absmax_bits`, the largest |x| by the order of its bits, in which every NaN
 * is above Inf and Inf above every number; `encode`, which writes the codes of a row and returns their sum. */
#ifndef BT_CPU_ACT_QUANTIZE_ROW_H
#define BT_CPU_ACT_QUANTIZE_ROW_H

#include "../act_quantize.h"
#include "half.h"

#include <math.h>
#include <string.h>

typedef uint32_t bt_absmax_bits(const bt_act_quantize *p, const char *x, size_t size);
typedef int32_t bt_encode_row(const bt_act_quantize *p, const char *x, size_t size, float inverse, int8_t *q);

/* Zeros in the last block of planes, which the codes then fill in part. */
static inline void bt_pad_row(const bt_act_quantize *p, int8_t *q) {
    if (p->order == BT_ORDER_PLANES && p->k % BT_ACT_BLOCK != 0)
        memset(q + p->k / BT_ACT_BLOCK * BT_ACT_BLOCK, 0, BT_ACT_BLOCK);
}

static inline int32_t bt_act_row(const bt_act_quantize *p, int64_t row, int8_t *q, bt_absmax_bits *absmax_bits,
                                 bt_encode_row *encode) {
    const size_t size = p->x_type == BT_F32 ? sizeof(float) : sizeof(uint16_t);
    const char *x = (const char *)p->x + row * p->ldx * (int64_t)size;
    const uint32_t bits = absmax_bits(p, x, size);
    bt_pad_row(p, q);
    if (bits >= 0x7f800000u) {
        p->scale[row] = NAN;
        memset(q, 0, (size_t)(p->order == BT_ORDER_PLANES ? p->k / BT_ACT_BLOCK * BT_ACT_BLOCK : p->k));
        return 0;
    }
    const float absmax = fmaxf(bt_bits_float(bits), 1e-5f);
    p->scale[row] = absmax / 127.0f;
    return encode(p, x, size, 127.0f / absmax, q);
}

static inline bt_status bt_act_rows(const bt_act_quantize *p, int64_t row_begin, int64_t row_end,
                                    bt_absmax_bits *absmax_bits, bt_encode_row *encode) {
    BT_ASSERT(p->x_type != BT_I8 && (p->order == BT_ORDER_NATURAL || p->ldq % BT_ACT_BLOCK == 0));
    for (int64_t row = row_begin; row < row_end; row++) {
        const int32_t sum = bt_act_row(p, row, p->q + row * p->ldq, absmax_bits, encode);
        if (p->sum)
            p->sum[row] = sum;
    }
    return BT_OK;
}

#endif
