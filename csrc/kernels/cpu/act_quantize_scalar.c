#include "../act_quantize.h"
#include "half.h"

#include <math.h>
#include <string.h>

static int64_t position(const bt_act_quantize *p, int64_t k) {
    return p->order == BT_ORDER_PLANES ? bt_plane_index(k) : k;
}

/* The largest |x| by the order of its bits, in which every NaN is above Inf and Inf above every number. */
static uint32_t absmax_bits(const bt_act_quantize *p, int64_t row) {
    uint32_t most = 0;
    for (int64_t k = 0; k < p->k; k++) {
        const uint32_t bits = bt_float_bits(bt_load(p->x, p->x_type, row * p->ldx + k)) & 0x7fffffffu;
        most = bits > most ? bits : most;
    }
    return most;
}

static int32_t order_codes(const bt_act_quantize *p, int64_t row, int8_t *q) {
    const int8_t *x = (const int8_t *)p->x + row * p->ldx;
    uint32_t sum = 0; /* of a row longer than int32 can sum, nobody asks for it: let it wrap */
    for (int64_t k = 0; k < p->k; k++) {
        q[position(p, k)] = x[k];
        sum += (uint32_t)x[k];
    }
    return (int32_t)sum;
}

static int32_t quantize_row(const bt_act_quantize *p, int64_t row, int8_t *q) {
    const uint32_t bits = absmax_bits(p, row);
    if (bits >= 0x7f800000u) {
        p->scale[row] = NAN;
        for (int64_t k = 0; k < p->k; k++)
            q[position(p, k)] = 0;
        return 0;
    }
    const float absmax = fmaxf(bt_bits_float(bits), 1e-5f);
    const float inverse = 127.0f / absmax;
    uint32_t sum = 0; /* of a row longer than int32 can sum, nobody asks for it: let it wrap */
    for (int64_t k = 0; k < p->k; k++) {
        const float scaled = rintf(bt_load(p->x, p->x_type, row * p->ldx + k) * inverse);
        const int code = (int)fminf(fmaxf(scaled, -127.0f), 127.0f);
        q[position(p, k)] = (int8_t)code;
        sum += (uint32_t)code;
    }
    p->scale[row] = absmax / 127.0f;
    return (int32_t)sum;
}

bt_status bt_act_quantize_scalar(const bt_act_quantize *p, int64_t row_begin, int64_t row_end) {
    BT_ASSERT(p->order == BT_ORDER_NATURAL || p->ldq % BT_ACT_BLOCK == 0);
    for (int64_t row = row_begin; row < row_end; row++) {
        int8_t *q = p->q + row * p->ldq;
        if (p->order == BT_ORDER_PLANES && p->k % BT_ACT_BLOCK != 0)
            memset(q + p->k / BT_ACT_BLOCK * BT_ACT_BLOCK, 0, BT_ACT_BLOCK);
        const int32_t sum = p->x_type == BT_I8 ? order_codes(p, row, q) : quantize_row(p, row, q);
        if (p->sum)
            p->sum[row] = sum;
    }
    return BT_OK;
}
