/* decode_attention in vectors of WIDTH floats, which the file that includes this says, and for them
 *
 *   vec bt_attention_fma(vec a, vec b, vec c)                 a * b + c, rounded once
 *   vec bt_attention_load(const void *from, int type)         WIDTH elements, widened
 *   void bt_attention_sums(const float *lanes, float *sum)    the sums of lanes of 16 keys, 16 lanes each
 *
 * 16 keys at a time meet up to four queries; weights, up to 256 of each query, then meet the values some keys at a
 * time, so that rows come from memory whole, and sums of a few columns stay in registers meanwhile. */
#ifndef BT_CPU_ATTENTION_VECTORS_H
#define BT_CPU_ATTENTION_VECTORS_H

#include "attention_tiles.h"

enum { VECTORS = BT_ATTENTION_LANES / WIDTH, KEYS = BT_ATTENTION_LANES, VALUE_KEYS = 32, AHEAD = 4096 };

typedef vec vec_memory __attribute__((aligned(4), may_alias));

BT_ATTENTION_INLINE vec at(const float *from) {
    return *(const vec_memory *)from;
}
BT_ATTENTION_INLINE void put(float *to, vec v) {
    *(vec_memory *)to = v;
}
BT_ATTENTION_INLINE vec all(float value) {
    return value - (vec){0};
}
/* Where the lanes of `mask` are all ones, else zero. */
BT_ATTENTION_INLINE vec where(ivec mask, vec v) {
    return (vec)(mask & (ivec)v);
}

/* The lanes of the products of one key with the queries; out[h] is KEYS rows of lanes. */
BT_ATTENTION_INLINE void dot(const float *q, int64_t dim, const char *key, int type, int heads, float *out) {
    const int64_t size = bt_attention_element(type);
    vec sum[BT_ATTENTION_HEADS][VECTORS];
#pragma GCC unroll 4
    for (int h = 0; h < heads; h++)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++)
            sum[h][v] = (vec){0};
    for (int64_t c = 0; c < dim; c += BT_ATTENTION_LANES)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) {
            const vec k = bt_attention_load(key + (c + v * WIDTH) * size, type);
#pragma GCC unroll 4
            for (int h = 0; h < heads; h++)
                sum[h][v] = bt_attention_fma(at(q + h * dim + c + v * WIDTH), k, sum[h][v]);
        }
#pragma GCC unroll 4
    for (int h = 0; h < heads; h++)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++)
            put(out + h * KEYS * BT_ATTENTION_LANES + v * WIDTH, sum[h][v]);
}

/* Fetches the keys that come AHEAD of this one, and its value, which is needed when all keys are done. */
BT_ATTENTION_INLINE void ahead(const char *key, const char *value, int64_t bytes) {
    for (int64_t line = 0; line < bytes; line += 64) {
        __builtin_prefetch(key + AHEAD + line);
        __builtin_prefetch(value + line, 0, 2);
    }
}

/* Scores of all keys, BT_ATTENTION_SPLIT for each query; -Inf behind the last up to a multiple of KEYS. */
BT_ATTENTION_INLINE void score(const bt_decode_attention *p, const float *q, const char *k, const char *v, int64_t keys,
                               int type, int heads, float *scores) {
    float lanes[BT_ATTENTION_HEADS * KEYS * BT_ATTENTION_LANES] __attribute__((aligned(64)));
    const int64_t size = bt_attention_element(type), step = p->ldslot * size;
    for (int64_t begin = 0; begin < keys; begin += KEYS) {
        const int64_t here = keys - begin < KEYS ? keys - begin : KEYS;
        if (here < KEYS)
            memset(lanes, 0, sizeof lanes);
        for (int64_t t = 0; t < here; t++) {
            const char *const key = k + (begin + t) * step;
            ahead(key, v + (begin + t) * step, p->dim * size);
            dot(q, p->dim, key, type, heads, lanes + t * BT_ATTENTION_LANES);
        }
        for (int h = 0; h < heads; h++) {
            float *const out = scores + h * BT_ATTENTION_SPLIT + begin;
            bt_attention_sums(lanes + h * KEYS * BT_ATTENTION_LANES, out);
            for (int64_t t = here; t < KEYS; t++)
                out[t] = -INFINITY;
        }
    }
}

/* bt_attention_exp2() of each lane. */
BT_ATTENTION_INLINE vec exp2_of(vec x) {
    const vec shifted = x + BT_EXP2_SHIFT, f = x - (shifted - BT_EXP2_SHIFT);
    const vec power = (vec)(((uvec)shifted - 0x4b400000u + 127u) << 23);
    vec sum = (vec){0};
#define BT_STEP(c) sum = bt_attention_fma(sum, f, all(c));
    BT_EXP2_POLYNOMIAL(BT_STEP)
#undef BT_STEP
    return where(~(ivec)(x < BT_EXP2_LEAST), bt_attention_fma(sum, f, all(1.0f)) * power);
}

/* Scores become weights; the maximum and the sum go to part[0] and part[1]. */
BT_ATTENTION_INLINE void weigh(float *scores, int64_t keys, float *part) {
    float lane[BT_ATTENTION_LANES] __attribute__((aligned(64))), most = -INFINITY;
    vec peak[VECTORS], sum[VECTORS];
    for (int v = 0; v < VECTORS; v++)
        peak[v] = all(-INFINITY), sum[v] = (vec){0};
    for (int64_t t = 0; t < keys; t += BT_ATTENTION_LANES)
        for (int v = 0; v < VECTORS; v++) {
            const vec s = at(scores + t + v * WIDTH);
            const ivec larger = (ivec)(s > peak[v]);
            peak[v] = (vec)((larger & (ivec)s) | (~larger & (ivec)peak[v]));
        }
    for (int v = 0; v < VECTORS; v++)
        put(lane + v * WIDTH, peak[v]);
    for (int j = 0; j < BT_ATTENTION_LANES; j++)
        most = lane[j] > most ? lane[j] : most;
    const vec zero = all(most == -INFINITY ? 0.0f : most);
    for (int64_t t = 0; t < keys; t += BT_ATTENTION_LANES)
        for (int v = 0; v < VECTORS; v++) {
            const vec weight = exp2_of(at(scores + t + v * WIDTH) - zero);
            put(scores + t + v * WIDTH, weight);
            sum[v] += weight;
        }
    for (int v = 0; v < VECTORS; v++)
        put(lane + v * WIDTH, sum[v]);
    part[0] = most;
    part[1] = bt_attention_sum(lane);
}

/* Adds weight * value of `keys` keys to `count` vectors of columns of each query's part. */
BT_ATTENTION_INLINE void add_columns(const float *weights, const char *v, int64_t step, int64_t keys, int type,
                                     int heads, int count, float *part, int64_t part_step) {
    vec sum[BT_ATTENTION_HEADS][4];
#pragma GCC unroll 4
    for (int h = 0; h < heads; h++)
#pragma GCC unroll 4
        for (int c = 0; c < count; c++)
            sum[h][c] = at(part + h * part_step + c * WIDTH);
    for (int64_t t = 0; t < keys; t++, v += step)
#pragma GCC unroll 4
        for (int c = 0; c < count; c++) {
            const vec value = bt_attention_load(v + c * WIDTH * bt_attention_element(type), type);
#pragma GCC unroll 4
            for (int h = 0; h < heads; h++)
                sum[h][c] = bt_attention_fma(all(weights[h * BT_ATTENTION_SPLIT + t]), value, sum[h][c]);
        }
#pragma GCC unroll 4
    for (int h = 0; h < heads; h++)
#pragma GCC unroll 4
        for (int c = 0; c < count; c++)
            put(part + h * part_step + c * WIDTH, sum[h][c]);
}

BT_ATTENTION_INLINE void attend(const bt_decode_attention *p, const float *q, const char *k, const char *v,
                                int64_t keys, int type, int heads, float *part, int64_t part_step) {
    float scores[BT_ATTENTION_HEADS * BT_ATTENTION_SPLIT] __attribute__((aligned(64)));
    const int64_t size = bt_attention_element(type), step = p->ldslot * size;
    score(p, q, k, v, keys, type, heads, scores);
    for (int h = 0; h < heads; h++) {
        memset(part + h * part_step, 0, (size_t)p->dim * sizeof *part);
        weigh(scores + h * BT_ATTENTION_SPLIT, keys, part + h * part_step + p->dim);
    }
    for (int64_t t = 0; t < keys; t += VALUE_KEYS) {
        const int64_t here = keys - t < VALUE_KEYS ? keys - t : VALUE_KEYS;
        int64_t c = 0;
        for (; c + COLUMNS * WIDTH <= p->dim; c += COLUMNS * WIDTH)
            add_columns(scores + t, v + t * step + c * size, step, here, type, heads, COLUMNS, part + c, part_step);
        for (; c < p->dim; c += WIDTH)
            add_columns(scores + t, v + t * step + c * size, step, here, type, heads, 1, part + c, part_step);
    }
}

/* A function for each type and number of queries, constants to the loops. */
#define BT_ATTENTION_CASE(type, heads)                                                                                 \
    case 4 * type + heads - 1:                                                                                         \
        attend(p, q, k, v, keys, type, heads, part, part_step);                                                        \
        break;
#define BT_ATTENTION_TYPE(type)                                                                                        \
    BT_ATTENTION_CASE(type, 1) BT_ATTENTION_CASE(type, 2) BT_ATTENTION_CASE(type, 3) BT_ATTENTION_CASE(type, 4)

static void attend_any(const bt_decode_attention *p, const float *q, const char *k, const char *v, int64_t keys,
                       int heads, float *part, int64_t part_step) {
    switch (4 * p->kv_type + heads - 1) {
        BT_ATTENTION_TYPE(BT_F32)
        BT_ATTENTION_TYPE(BT_F16)
        BT_ATTENTION_TYPE(BT_BF16)
    }
}

static inline bt_status bt_attention_run(const bt_decode_attention *p, int64_t tile_begin, int64_t tile_end) {
    if (p->dim % BT_ATTENTION_LANES)
        return bt_decode_attention_scalar(p, tile_begin, tile_end);
    return bt_attention_tiles(p, tile_begin, tile_end, attend_any);
}

#endif
