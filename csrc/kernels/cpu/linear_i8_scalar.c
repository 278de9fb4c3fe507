/* The definition of linear_i8 on a CPU; see the header. */
#include "../linear_i8.h"
#include "half.h"

static int32_t dot(const bt_linear_i8 *p, int64_t q_row, int64_t r) {
    const int8_t *const q = p->q + q_row * p->ldq, *const w = p->w + r * p->ldw;
    int32_t sum = 0;
    for (int64_t c = 0; c < p->k; c++)
        sum += q[c] * w[c];
    return sum;
}

/* Sums begin with +0, as those of the ops with groups do. */
static float product(const bt_linear_i8 *p, int64_t i, int64_t r) {
    if (p->digits == 1)
        return 0.0f + (float)dot(p, i, r) * (p->q_scale[i] * p->scale[r]);
    int64_t acc = 0;
    for (int d = p->digits - 1; d >= 0; d--)
        acc = 256 * acc + dot(p, p->digits * i + d, r);
    return (float)(0.0 + ((double)acc * p->q_step[i]) * (double)p->scale[r]);
}

bt_status bt_linear_i8_scalar(const bt_linear_i8 *p, int64_t tile_begin, int64_t tile_end) {
    BT_ASSERT(p->k <= BT_I8_MAX_K);
    for (int64_t index = tile_begin; index < tile_end; index++) {
        const bt_tile t = bt_tile_at(p->m, p->n, index);
        for (int64_t i = t.m0; i < t.m1; i++)
            for (int64_t r = t.n0; r < t.n1; r++)
                bt_finish(p->y, p->y_type, i * p->ldy + r, product(p, i, r), p->bias, p->bias_type, r);
    }
    return BT_OK;
}
