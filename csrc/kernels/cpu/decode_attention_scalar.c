#include "attention_tiles.h"

static float score(const bt_decode_attention *p, const float *q, const char *key) {
    float lane[BT_ATTENTION_LANES] = {0};
    for (int64_t c = 0; c < p->dim; c++)
        lane[c % BT_ATTENTION_LANES] = fmaf(q[c], bt_load(key, p->kv_type, c), lane[c % BT_ATTENTION_LANES]);
    return bt_attention_sum(lane);
}

static void attend(const bt_decode_attention *p, const float *q, const char *k, const char *v, int64_t keys, int heads,
                   float *part, int64_t part_step) {
    const int64_t step = p->ldslot * bt_attention_element(p->kv_type);
    for (int h = 0; h < heads; h++, q += p->dim, part += part_step) {
        float weight[BT_ATTENTION_SPLIT], lane[BT_ATTENTION_LANES] = {0}, most = -INFINITY;
        for (int64_t t = 0; t < keys; t++) {
            weight[t] = score(p, q, k + t * step);
            most = weight[t] > most ? weight[t] : most;
        }
        for (int64_t t = 0; t < keys; t++) {
            weight[t] = bt_attention_exp2(weight[t] - (most == -INFINITY ? 0.0f : most));
            lane[t % BT_ATTENTION_LANES] += weight[t];
        }
        for (int64_t c = 0; c < p->dim; c++) {
            float sum = 0.0f;
            for (int64_t t = 0; t < keys; t++)
                sum = fmaf(weight[t], bt_load(v + t * step, p->kv_type, c), sum);
            part[c] = sum;
        }
        part[p->dim] = most;
        part[p->dim + 1] = bt_attention_sum(lane);
    }
}

bt_status bt_decode_attention_scalar(const bt_decode_attention *p, int64_t tile_begin, int64_t tile_end) {
    return bt_attention_tiles(p, tile_begin, tile_end, attend);
}

/* The parts of a token and head, `splits` of them side by side, as y. */
static void combine(const bt_decode_attention *p, const float *parts, int64_t splits, int64_t at) {
    float sum[BT_ATTENTION_MAX_DIM] = {0}, most = -INFINITY, total = 0.0f;
    const int64_t size = bt_attention_part_size(p);
    for (int64_t i = 0; i < splits; i++)
        most = parts[i * size + p->dim] > most ? parts[i * size + p->dim] : most;
    for (int64_t i = 0; i < splits; i++) {
        const float *const part = parts + i * size;
        if (part[p->dim + 1] == 0.0f) /* all scores are -Inf */
            continue;
        const float weight = bt_attention_exp2(part[p->dim] - most);
        total += weight * part[p->dim + 1];
        for (int64_t c = 0; c < p->dim; c++)
            sum[c] += weight * part[c];
    }
    const float inverse = total == 0.0f ? 0.0f : 1.0f / total;
    for (int64_t c = 0; c < p->dim; c++)
        sum[c] *= inverse;
    bt_store_many(p->y, p->type, at, p->dim, sum);
}

bt_status bt_decode_attention_combine(const bt_decode_attention *p, int64_t begin, int64_t end) {
    const bt_attention_sequence *s = p->sequences;
    for (int64_t pair = begin; pair < end; pair++) {
        const int64_t token = pair / p->heads, head = pair % p->heads;
        while (token >= s->token + s->count)
            s++;
        const int64_t position = s->length - s->count + token - s->token;
        const int64_t first = bt_attention_begin(p->window, position) / BT_ATTENTION_SPLIT;
        const int64_t splits = position / BT_ATTENTION_SPLIT + 1 - first;
        combine(p, bt_attention_part(p, s, token - s->token, head, first), splits, token * p->ldy + head * p->dim);
    }
    return BT_OK;
}
