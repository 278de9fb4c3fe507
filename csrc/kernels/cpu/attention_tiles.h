/* The frame of decode_attention on a CPU: the walk over tiles, and over the tokens and heads of each. */
#ifndef BT_CPU_ATTENTION_TILES_H
#define BT_CPU_ATTENTION_TILES_H

#include "../decode_attention.h"
#include "half.h"

enum { BT_ATTENTION_HEADS = 4 }; /* that share one reading of the keys */

/* Fills the parts of `heads` queries, part_step floats apart, from `keys` slots, at least one and at most a split. The
 * queries are multiplied by the factor, and lie side by side. */
typedef void bt_attention_attend(const bt_decode_attention *p, const float *q, const char *k, const char *v,
                                 int64_t keys, int heads, float *part, int64_t part_step);

static inline int64_t bt_attention_element(int type) {
    return type == BT_F32 ? 4 : 2;
}

/* Lanes j and j + 8, j + 4, j + 2, j + 1. */
static inline __attribute__((always_inline)) float bt_attention_sum(float lane[BT_ATTENTION_LANES]) {
    for (int width = BT_ATTENTION_LANES / 2; width > 0; width /= 2)
        for (int j = 0; j < width; j++)
            lane[j] += lane[j + width];
    return lane[0];
}

/* What one token gets of slots [begin, end), all its heads of one head of k and v. */
static inline void bt_attention_token(const bt_decode_attention *p, const bt_attention_sequence *s, int64_t i,
                                      int64_t kv_head, int64_t split, int64_t begin, int64_t end,
                                      bt_attention_attend *attend) {
    float q[BT_ATTENTION_HEADS * BT_ATTENTION_MAX_DIM] __attribute__((aligned(64)));
    const int64_t group = p->heads / p->kv_heads;
    const int64_t at = (s->row * p->ldrow + kv_head * p->ldhead + begin * p->ldslot) * bt_attention_element(p->kv_type);
    for (int64_t g = 0; g < group; g += BT_ATTENTION_HEADS) {
        const int64_t heads = group - g < BT_ATTENTION_HEADS ? group - g : BT_ATTENTION_HEADS;
        const int64_t head = kv_head * group + g;
        bt_load_many(p->q, p->type, (s->token + i) * p->ldq + head * p->dim, heads * p->dim, q);
        for (int64_t c = 0; c < heads * p->dim; c++)
            q[c] *= p->factor;
        float *const part = bt_attention_part(p, s, i, head, split);
        attend(p, q, (const char *)p->k + at, (const char *)p->v + at, end - begin, (int)heads, part,
               bt_attention_splits(p, s) * bt_attention_part_size(p));
    }
}

static inline bt_status bt_attention_tiles(const bt_decode_attention *p, int64_t tile_begin, int64_t tile_end,
                                           bt_attention_attend *attend) {
    const bt_attention_sequence *s = p->sequences;
    BT_ASSERT(p->dim > 0 && p->dim <= BT_ATTENTION_MAX_DIM && p->heads % p->kv_heads == 0);
    for (int64_t tile = tile_begin; tile < tile_end; tile++) {
        while (tile - s->tile >= bt_attention_splits(p, s) * p->kv_heads)
            s++;
        const int64_t splits = bt_attention_splits(p, s), kv_head = (tile - s->tile) / splits;
        const int64_t split = bt_attention_first(p, s) + (tile - s->tile) % splits;
        for (int64_t i = 0; i < s->count; i++) {
            const int64_t position = s->length - s->count + i, seen = bt_attention_begin(p->window, position);
            int64_t begin = split * BT_ATTENTION_SPLIT, end = begin + BT_ATTENTION_SPLIT;
            begin = begin < seen ? seen : begin;
            end = end < position + 1 ? end : position + 1;
            if (begin < end)
                bt_attention_token(p, s, i, kv_head, split, begin, end, attend);
        }
    }
    return BT_OK;
}

#endif
