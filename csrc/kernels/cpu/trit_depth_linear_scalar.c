/* The definition of trit_depth_linear on a CPU; see the header. */
#include "../trit_depth_linear.h"
#include "half.h"
#include "trit.h"

static int32_t weight(const bt_trit_depth_linear *p, int64_t r, int64_t k) {
    int32_t sum = 0;
    for (int i = p->depth - 1; i >= 0; i--)
        sum = 3 * sum + bt_trit_at(p->w + i * p->plane + r * p->ldw, k);
    return sum;
}

/* The dot products of columns [begin, end) with each digit of a token, joined. */
static int64_t dot(const bt_trit_depth_linear *p, int64_t i, int64_t r, int64_t begin, int64_t end) {
    int32_t acc[BT_MAX_DIGITS] = {0};
    int64_t joined = 0;
    for (int64_t k = begin; k < end; k++) {
        const int32_t w = weight(p, r, k);
        for (int d = 0; d < p->digits; d++)
            acc[d] += w * p->q[(p->digits * i + d) * p->ldq + bt_plane_index(k)];
    }
    for (int d = p->digits - 1; d >= 0; d--)
        joined = 256 * joined + acc[d];
    return joined;
}

static float sum_groups(const bt_trit_depth_linear *p, int64_t i, int64_t r) {
    const float *scale = p->scale + r * p->lds;
    float sum = 0.0f;
    double wide_sum = 0.0;
    for (int64_t begin = 0; begin < p->k; begin += p->group, scale++) {
        const int64_t acc = dot(p, i, r, begin, begin + p->group);
        if (p->digits == 1)
            sum += (float)acc * (p->q_scale[i] * *scale);
        else
            wide_sum += ((double)acc * p->q_step[i]) * (double)*scale;
    }
    return p->digits == 1 ? sum : (float)wide_sum;
}

bt_status bt_trit_depth_linear_scalar(const bt_trit_depth_linear *p, int64_t tile_begin, int64_t tile_end) {
    BT_ASSERT(p->k <= BT_I8_MAX_K && p->depth <= BT_MAX_DEPTH && p->ldq % BT_ACT_BLOCK == 0);
    for (int64_t index = tile_begin; index < tile_end; index++) {
        const bt_tile t = bt_tile_at(p->m, p->n, index);
        for (int64_t i = t.m0; i < t.m1; i++)
            for (int64_t r = t.n0; r < t.n1; r++)
                bt_finish(p->y, p->y_type, i * p->ldy + r, sum_groups(p, i, r), p->bias, p->bias_type, r);
    }
    return BT_OK;
}
