/* The definition of ternary_linear_w2a8 on a CPU; see the header. */
#include "../act_quantize.h"
#include "../ternary_linear_w2a8.h"
#include "half.h"
#include "trit.h"

static int32_t dot(const int8_t *q, const uint8_t *w, int64_t begin, int64_t end) {
    int32_t sum = 0;
    for (int64_t k = begin; k < end; k++)
        sum += bt_trit_at(w, k) * q[bt_plane_index(k)];
    return sum;
}

/* Token i by row r of w: the sum over groups. */
static float sum_groups(const bt_ternary_linear_w2a8 *p, int64_t i, int64_t r) {
    const uint8_t *w = p->w + r * p->ldw;
    const float *scale = p->scale + r * p->lds;
    float sum = 0.0f;
    for (int64_t begin = 0; begin < p->k; begin += p->group)
        sum += (float)dot(p->q + i * p->ldq, w, begin, begin + p->group) * (p->q_scale[i] * *scale++);
    return sum;
}

static float sum_groups_of_digits(const bt_ternary_linear_w2a8 *p, int64_t i, int64_t r) {
    const uint8_t *w = p->w + r * p->ldw;
    const float *scale = p->scale + r * p->lds;
    double sum = 0.0;
    for (int64_t begin = 0; begin < p->k; begin += p->group) {
        int64_t acc = 0;
        for (int d = p->digits - 1; d >= 0; d--)
            acc = 256 * acc + dot(p->q + (p->digits * i + d) * p->ldq, w, begin, begin + p->group);
        sum += ((double)acc * p->q_step[i]) * (double)*scale++;
    }
    return (float)sum;
}

bt_status bt_ternary_linear_w2a8_scalar(const bt_ternary_linear_w2a8 *p, int64_t tile_begin, int64_t tile_end) {
    BT_ASSERT(p->ldq % BT_ACT_BLOCK == 0 && p->k <= BT_W2A8_MAX_K);
    for (int64_t index = tile_begin; index < tile_end; index++) {
        const bt_tile t = bt_tile_at(p->m, p->n, index);
        for (int64_t i = t.m0; i < t.m1; i++)
            for (int64_t r = t.n0; r < t.n1; r++) {
                const float sum = p->digits == 1 ? sum_groups(p, i, r) : sum_groups_of_digits(p, i, r);
                bt_finish(p->y, p->y_type, i * p->ldy + r, sum, p->bias, p->bias_type, r);
            }
    }
    return BT_OK;
}
