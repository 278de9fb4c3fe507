/* The definition of ternary_linear_packed on a CPU, and the activation orders that its variants read; see the header.
 */
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

/* Interleaved twice, a block is transposed as 16 x 16; of a last block the first `count` columns are there. */
static void prepare_block(const void *x, int type, int64_t from, int64_t count, float *xp) {
    float natural[BT_FLOAT_BLOCK], half_way[BT_FLOAT_BLOCK];
    memset(natural + count, 0, (size_t)(BT_FLOAT_BLOCK - count) * sizeof *natural);
    bt_load_many(x, type, from, count, natural);
    interleave(natural, half_way);
    interleave(half_way, xp);
}

static void prepare_pairs(const bt_ternary_linear_packed *p, int64_t i) {
    const uint16_t *x = (const uint16_t *)p->x + i * p->ldx;
    uint16_t *xp = bt_packed_xp_row(p, i);
    for (int64_t block = 0; block < p->k; block += BT_FLOAT_BLOCK) {
        const int64_t left = p->k - block;
        uint32_t natural[BT_FLOAT_BLOCK / 2] = {0}, pairs[BT_FLOAT_BLOCK / 2];
        memcpy(natural, x + block, (size_t)(left < BT_FLOAT_BLOCK ? left : BT_FLOAT_BLOCK) * sizeof *x);
        for (int s = 0; s < 8; s++)
            for (int lane = 0; lane < 16; lane++)
                pairs[16 * s + lane] = natural[8 * lane + s];
        memcpy(xp + block, pairs, sizeof pairs);
    }
}

bt_status bt_ternary_linear_packed_prepare(const bt_ternary_linear_packed *p, int64_t row_begin, int64_t row_end) {
    BT_ASSERT(p->xp_type == BT_F32 || (p->xp_type == BT_BF16 && p->x_type == BT_BF16));
    for (int64_t i = row_begin; i < row_end; i++) {
        if (p->xp_type == BT_BF16) {
            prepare_pairs(p, i);
            continue;
        }
        float *xp = bt_packed_xp_row(p, i);
        if (p->xp_natural) {
            bt_load_many(p->x, p->x_type, i * p->ldx, p->k, xp);
            continue;
        }
        for (int64_t k = 0; k < p->k; k += BT_FLOAT_BLOCK)
            prepare_block(p->x, p->x_type, i * p->ldx + k, p->k - k < BT_FLOAT_BLOCK ? p->k - k : BT_FLOAT_BLOCK,
                          xp + k);
    }
    return BT_OK;
}

/* Column 16 lane + s of a block. */
static inline float prepared_at(const void *xp, const int xp_type, int64_t block, int s, int lane) {
    if (xp_type == BT_F32)
        return ((const float *)xp)[block + 16 * s + lane];
    return bt_from_bf16(((const uint16_t *)xp)[block + 32 * (s / 2) + 2 * lane + s % 2]);
}

static inline float dot_of(const void *xp, const int xp_type, const uint8_t *w, int64_t begin, int64_t end) {
    float lane[16] = {0};
    for (int64_t block = begin & ~(int64_t)255; block < end; block += BT_FLOAT_BLOCK)
        for (int s = 0; s < 16; s++)
            for (int l = 0; l < 16; l++) {
                const int64_t k = block + 16 * l + s;
                if (k >= begin && k < end)
                    lane[l] += (float)bt_trit_at(w, k) * prepared_at(xp, xp_type, block, s, l);
            }
    for (int width = 8; width > 0; width /= 2)
        for (int l = 0; l < width; l++)
            lane[l] += lane[l + width];
    return lane[0];
}

static float dot(const void *xp, int xp_type, const uint8_t *w, int64_t begin, int64_t end) {
    return xp_type == BT_F32 ? dot_of(xp, BT_F32, w, begin, end) : dot_of(xp, BT_BF16, w, begin, end);
}

bt_status bt_ternary_linear_packed_scalar(const bt_ternary_linear_packed *p, int64_t tile_begin, int64_t tile_end) {
    BT_ASSERT((p->xp_type == BT_F32 || p->xp_type == BT_BF16) && !p->xp_natural && p->ldxp % BT_FLOAT_BLOCK == 0);
    for (int64_t index = tile_begin; index < tile_end; index++) {
        const bt_tile t = bt_tile_at(p->m, p->n, index);
        for (int64_t i = t.m0; i < t.m1; i++)
            for (int64_t r = t.n0; r < t.n1; r++) {
                const uint8_t *w = p->w + r * p->ldw;
                const float *scale = p->scale + r * p->lds;
                float sum = 0.0f;
                for (int64_t begin = 0; begin < p->k; begin += p->group)
                    sum += dot(bt_packed_xp_row(p, i), p->xp_type, w, begin, begin + p->group) * *scale++;
                bt_finish(p->y, p->y_type, i * p->ldy + r, sum, p->bias, p->bias_type, r);
            }
    }
    return BT_OK;
}
