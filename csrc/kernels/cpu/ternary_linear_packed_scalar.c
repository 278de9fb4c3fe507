/* The definition of ternary_linear_packed on a CPU, and the activation order that all its variants read; see the
 * header. */
#include "../ternary_linear_packed.h"
#include "half.h"
#include "trit.h"

#include <string.h>

/* The four quarters of a block, one element of each by turns: the index of an element turns left by 2 of its 8 bits. */
static void interleave(const float *restrict from, float *restrict to) {
    for (int k = 0; k < BT_FLOAT_BLOCK / 4; k++)
        for (int quarter = 0; quarter < 4; quarter++)
            to[4 * k + quarter] = from[BT_FLOAT_BLOCK / 4 * quarter + k];
}

/* Interleaved twice, a block is transposed as 16 x 16. */
static void prepare_block(const void *x, int type, int64_t from, float *xp) {
    float natural[BT_FLOAT_BLOCK], half_way[BT_FLOAT_BLOCK];
    bt_load_many(x, type, from, BT_FLOAT_BLOCK, natural);
    interleave(natural, half_way);
    interleave(half_way, xp);
}

bt_status bt_ternary_linear_packed_prepare(const bt_ternary_linear_packed *p, int64_t row_begin, int64_t row_end) {
    const int64_t whole = p->k / BT_FLOAT_BLOCK * BT_FLOAT_BLOCK;
    for (int64_t i = row_begin; i < row_end; i++) {
        float *xp = p->xp + i * p->ldxp;
        for (int64_t k = 0; k < whole; k += BT_FLOAT_BLOCK)
            prepare_block(p->x, p->x_type, i * p->ldx + k, xp + k);
        if (whole != p->k)
            memset(xp + whole, 0, BT_FLOAT_BLOCK * sizeof *xp);
        for (int64_t k = whole; k < p->k; k++)
            xp[bt_float_index(k)] = bt_load(p->x, p->x_type, i * p->ldx + k);
    }
    return BT_OK;
}

static float dot(const float *xp, const uint8_t *w, int64_t begin, int64_t end) {
    float lane[16] = {0};
    for (int64_t block = begin & ~(int64_t)255; block < end; block += BT_FLOAT_BLOCK)
        for (int s = 0; s < 16; s++)
            for (int l = 0; l < 16; l++) {
                const int64_t k = block + 16 * l + s;
                if (k >= begin && k < end)
                    lane[l] += (float)bt_trit_at(w, k) * xp[block + 16 * s + l];
            }
    for (int width = 8; width > 0; width /= 2)
        for (int l = 0; l < width; l++)
            lane[l] += lane[l + width];
    return lane[0];
}

bt_status bt_ternary_linear_packed_scalar(const bt_ternary_linear_packed *p, int64_t tile_begin, int64_t tile_end) {
    BT_ASSERT(p->ldxp % BT_FLOAT_BLOCK == 0);
    for (int64_t index = tile_begin; index < tile_end; index++) {
        const bt_tile t = bt_tile_at(p->m, p->n, index);
        for (int64_t i = t.m0; i < t.m1; i++)
            for (int64_t r = t.n0; r < t.n1; r++) {
                const uint8_t *w = p->w + r * p->ldw;
                const float *scale = p->scale + r * p->lds;
                float sum = 0.0f;
                for (int64_t begin = 0; begin < p->k; begin += p->group)
                    sum += dot(p->xp + i * p->ldxp, w, begin, begin + p->group) * *scale++;
                bt_finish(p->y, p->y_type, i * p->ldy + r, sum, p->bias, p->bias_type, r);
            }
    }
    return BT_OK;
}
