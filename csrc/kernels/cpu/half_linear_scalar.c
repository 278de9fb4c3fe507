/* The definition of half_linear on a CPU; see the header. */
#include "../half_linear.h"
#include "half.h"

#include <math.h>

enum { LANES = 32 };

static float dot(const bt_half_linear *p, int64_t i, int64_t r) {
    float lane[LANES] = {0};
    for (int64_t c = 0; c < bt_div_up(p->k, LANES) * LANES; c++) {
        const float x = c < p->k ? p->x[i * p->ldx + c] : 0.0f;
        const float w = c < p->k ? bt_load(p->w, p->w_type, r * p->ldw + c) : 0.0f;
        lane[c % LANES] = fmaf(x, w, lane[c % LANES]);
    }
    for (int width = LANES / 2; width > 0; width /= 2)
        for (int j = 0; j < width; j++)
            lane[j] += lane[j + width];
    return lane[0];
}

bt_status bt_half_linear_scalar(const bt_half_linear *p, int64_t tile_begin, int64_t tile_end) {
    BT_ASSERT(p->w_type == BT_F16 || p->w_type == BT_BF16);
    for (int64_t tile = tile_begin; tile < tile_end; tile++) {
        const bt_tile t = bt_tile_at(p->m, p->n, tile);
        for (int64_t i = t.m0; i < t.m1; i++)
            for (int64_t r = t.n0; r < t.n1; r++)
                bt_finish(p->y, p->y_type, i * p->ldy + r, dot(p, i, r), p->bias, p->bias_type, r);
    }
    return BT_OK;
}
