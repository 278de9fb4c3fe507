#include "act_quantize_row.h"

static int64_t position(const bt_act_quantize *p, int64_t k) {
    return p->order == BT_ORDER_PLANES ? bt_plane_index(k) : k;
}

static float value(const bt_act_quantize *p, const bt_act_row *row, int64_t k) {
    const float x = bt_load(row->x, p->x_type, k);
    return row->norm ? x * row->factor * bt_load(row->norm, p->norm_type, k) : x;
}

static void square_sums(const bt_act_quantize *p, const bt_act_row *row, double lane[BT_NORM_LANES]) {
    for (int64_t k = 0; k < p->k; k++) {
        const double x = (double)bt_load(row->x, p->x_type, k);
        lane[k % BT_NORM_LANES] += x * x;
    }
}

static uint32_t absmax_bits(const bt_act_quantize *p, const bt_act_row *row) {
    uint32_t most = 0;
    for (int64_t k = 0; k < p->k; k++) {
        const uint32_t bits = bt_float_bits(value(p, row, k)) & 0x7fffffffu;
        most = bits > most ? bits : most;
    }
    return most;
}

static int32_t encode_row(const bt_act_quantize *p, const bt_act_row *row, float inverse, int8_t *q) {
    uint32_t sum = 0; /* of a row longer than int32 can sum, nobody asks for it: let it wrap */
    for (int64_t k = 0; k < p->k; k++) {
        const float scaled = rintf(value(p, row, k) * inverse);
        const int code = (int)fminf(fmaxf(scaled, -127.0f), 127.0f);
        q[position(p, k)] = (int8_t)code;
        sum += (uint32_t)code;
    }
    return (int32_t)sum;
}

static void encode_digits(const bt_act_quantize *p, const bt_act_row *row, double inverse, int8_t *q, int32_t *sum) {
    const double most = (double)bt_digits_max(p->digits);
    uint32_t total[BT_MAX_DIGITS] = {0};
    for (int64_t k = 0; k < p->k; k++) {
        const double scaled = rint((double)value(p, row, k) * inverse);
        int32_t code = (int32_t)fmin(fmax(scaled, -most), most);
        for (int d = 0; d < p->digits; d++, code = bt_next_digit(code)) {
            q[d * p->ldq + position(p, k)] = (int8_t)code;
            total[d] += (uint32_t)(int8_t)code;
        }
    }
    for (int d = 0; d < p->digits; d++)
        sum[d] = (int32_t)total[d];
}

static int32_t order_codes(const bt_act_quantize *p, int64_t row, int8_t *q) {
    const int8_t *x = (const int8_t *)p->x + row * p->ldx;
    uint32_t sum = 0;
    bt_pad_row(p, q);
    for (int64_t k = 0; k < p->k; k++) {
        q[position(p, k)] = x[k];
        sum += (uint32_t)x[k];
    }
    return (int32_t)sum;
}

bt_status bt_act_quantize_scalar(const bt_act_quantize *p, int64_t row_begin, int64_t row_end) {
    static const bt_act_passes passes = {square_sums, absmax_bits, encode_row, encode_digits};
    if (p->x_type != BT_I8)
        return bt_act_rows(p, row_begin, row_end, &passes);
    BT_ASSERT(p->digits == 1 && !p->norm_weight);
    BT_ASSERT(p->order == BT_ORDER_NATURAL || p->ldq % BT_ACT_BLOCK == 0);
    for (int64_t row = row_begin; row < row_end; row++) {
        const int32_t sum = order_codes(p, row, p->q + row * p->ldq);
        if (p->sum)
            p->sum[row] = sum;
    }
    return BT_OK;
}
