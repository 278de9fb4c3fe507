/* The frame of act_quantize on a CPU: the scale of a row, its padding, and what a row with NaN or Inf becomes.
 *
 * A variant brings the passes over a row: `square_sums`, the lanes of its sum of squares, which are given as zeros;
 * `absmax_bits`, the largest |x| by the order of its bits, in which every NaN is above Inf and Inf above every number;
 * `encode`, which writes the codes of a row and returns their sum; and `encode_digits`, which writes its digits, ldq
 * bytes apart, and adds up each. All but the first take x as its RMS norm where there is one: `bt_act_row` says. */
#ifndef BT_CPU_ACT_QUANTIZE_ROW_H
#define BT_CPU_ACT_QUANTIZE_ROW_H

#include "../act_quantize.h"
#include "half.h"

#include <math.h>
#include <string.h>

typedef struct bt_act_row {
    const char *x, *norm; /* norm: NULL, or the weight that x * factor is multiplied by */
    size_t size, norm_size;
    float factor;
} bt_act_row;

typedef struct bt_act_passes {
    void (*square_sums)(const bt_act_quantize *p, const bt_act_row *row, double lane[BT_NORM_LANES]);
    uint32_t (*absmax_bits)(const bt_act_quantize *p, const bt_act_row *row);
    int32_t (*encode)(const bt_act_quantize *p, const bt_act_row *row, float inverse, int8_t *q);
    void (*encode_digits)(const bt_act_quantize *p, const bt_act_row *row, double inverse, int8_t *q, int32_t *sum);
} bt_act_passes;

static inline size_t bt_float_bytes(int type) {
    return type == BT_F32 ? sizeof(float) : sizeof(uint16_t);
}

/* The squares of `count` columns from k on, none of them past a block of lanes. */
static inline __attribute__((always_inline)) void bt_add_squares(double lane[BT_NORM_LANES], int64_t k, const float *x,
                                                                 int count) {
    double *const from = lane + k % BT_NORM_LANES;
    for (int i = 0; i < count; i++)
        from[i] += (double)x[i] * (double)x[i];
}

/* What a row is multiplied by before the weight of its norm. */
static inline float bt_norm_factor(const bt_act_quantize *p, const bt_act_row *row, const bt_act_passes *passes) {
    double lane[BT_NORM_LANES] = {0};
    passes->square_sums(p, row, lane);
    for (int width = BT_NORM_LANES / 2; width > 0; width /= 2)
        for (int i = 0; i < width; i++)
            lane[i] += lane[i + width];
    return (float)(1.0 / sqrt(lane[0] / (double)p->k + p->norm_eps));
}

/* Zeros in the last block of planes, which the codes then fill in part. */
static inline void bt_pad_row(const bt_act_quantize *p, int8_t *q) {
    if (p->order == BT_ORDER_PLANES && p->k % BT_ACT_BLOCK != 0)
        memset(q + p->k / BT_ACT_BLOCK * BT_ACT_BLOCK, 0, BT_ACT_BLOCK);
}

static inline void bt_zero_row(const bt_act_quantize *p, int8_t *q) {
    memset(q, 0, (size_t)(p->order == BT_ORDER_PLANES ? bt_div_up(p->k, BT_ACT_BLOCK) * BT_ACT_BLOCK : p->k));
}

/* Codes, scale and sum of a row whose absmax has these bits. */
static inline void bt_encode_codes(const bt_act_quantize *p, int64_t row, const bt_act_row *x, uint32_t bits,
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
    *sum = passes->encode(p, x, 127.0f / absmax, q);
}

static inline void bt_encode_digits(const bt_act_quantize *p, int64_t row, const bt_act_row *x, uint32_t bits,
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
    passes->encode_digits(p, x, most / absmax, q, sum);
}

static inline bt_status bt_act_rows(const bt_act_quantize *p, int64_t row_begin, int64_t row_end,
                                    const bt_act_passes *passes) {
    BT_ASSERT(p->x_type != BT_I8 && (p->order == BT_ORDER_NATURAL || p->ldq % BT_ACT_BLOCK == 0));
    bt_act_row x = {.norm = (const char *)p->norm_weight,
                    .size = bt_float_bytes(p->x_type),
                    .norm_size = bt_float_bytes(p->norm_type)};
    for (int64_t row = row_begin; row < row_end; row++) {
        x.x = (const char *)p->x + row * p->ldx * (int64_t)x.size;
        if (x.norm)
            x.factor = bt_norm_factor(p, &x, passes);
        const uint32_t bits = passes->absmax_bits(p, &x);
        int32_t sum[BT_MAX_DIGITS] = {0};
        if (p->digits == 1)
            bt_encode_codes(p, row, &x, bits, passes, sum);
        else
            bt_encode_digits(p, row, &x, bits, passes, sum);
        if (p->sum)
            memcpy(p->sum + p->digits * row, sum, sizeof(int32_t) * (size_t)p->digits);
    }
    return BT_OK;
}

#endif
