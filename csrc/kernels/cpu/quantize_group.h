/* The frame of ternary_quantize on a CPU: which elements share a scale, the rule that keeps them, what the scale is.
 *
 * A variant brings the passes over a group: `measure` for its statistics, and `encode`, which writes the codes, counts
 * what is kept and adds up what the scale rule wants. Sums have eight fp64 lanes: lane i % 8 takes element i of a row
 * of the group, row after row, in rising order. The square of an fp32 is exact in fp64, so a fused multiply-add adds it
 * with the same rounding. */
#ifndef BT_CPU_QUANTIZE_GROUP_H
#define BT_CPU_QUANTIZE_GROUP_H

#include "../ternary_quantize.h"
#include "half.h"

#include <math.h>
#include <string.h>

/* Columns [c0, c1) of rows [r0, r1). */
typedef struct bt_group {
    int64_t r0, r1, c0, c1;
} bt_group;

typedef struct bt_group_stats {
    uint32_t absmax; /* as bits: a NaN is above Inf, Inf above every number */
    double sum;      /* finite unless the group is not; not read unless bt_needs_mean() */
} bt_group_stats;

typedef struct bt_group_sum {
    double sum;   /* by bt_scale_adds() */
    int64_t kept; /* codes that are not 0 */
} bt_group_sum;

typedef struct bt_group_passes {
    bt_group_stats (*measure)(const bt_ternary_quantize *p, const bt_group *g);
    bt_group_sum (*encode)(const bt_ternary_quantize *p, const bt_group *g, bt_keep_rule rule);
} bt_group_passes;

/* function(p, ..., type, element size), with the type a constant. */
#define BT_BY_W_TYPE(function, p, ...)                                                                                 \
    ((p)->w_type == BT_F32   ? function(p, __VA_ARGS__, BT_F32, sizeof(float))                                         \
     : (p)->w_type == BT_F16 ? function(p, __VA_ARGS__, BT_F16, sizeof(uint16_t))                                      \
                             : function(p, __VA_ARGS__, BT_BF16, sizeof(uint16_t)))

/* One chain of additions a lane is slower than the memory: where no mean is wanted, `measure` leaves it out. */
static inline int bt_needs_mean(const bt_ternary_quantize *p) {
    return p->rule == BT_SCALE_MEAN || bt_method_by(p->method) == BT_BY_MEAN;
}

/* How far ahead `encode` fetches: to the next row or group, when it adds up and `measure` did not. Then the one is
 * slower than the memory and the other waits for it; in the other cases the fetches only stood in the way. */
static inline uintptr_t bt_fetch_ahead(const bt_ternary_quantize *p, int64_t columns, size_t size) {
    return bt_scale_adds(p->rule) != BT_ADDS_NOTHING && !bt_needs_mean(p) ? (uintptr_t)columns * size : 0;
}

/* May point past the end of w. */
static inline void bt_fetch(const char *w, uintptr_t ahead) {
    __builtin_prefetch((const void *)((uintptr_t)w + ahead));
}

static inline int64_t bt_group_count(const bt_group *g) {
    return (g->r1 - g->r0) * (g->c1 - g->c0);
}

static inline double bt_sum_total(const double lane[8]) {
    return ((lane[0] + lane[1]) + (lane[2] + lane[3])) + ((lane[4] + lane[5]) + (lane[6] + lane[7]));
}

/* For all methods, in ternary_quantize_scalar.c. */
bt_keep_rule bt_find_rule(const bt_ternary_quantize *p, const bt_group *g, float absmax, float mean);

static inline void bt_clear_group(const bt_ternary_quantize *p, const bt_group *g) {
    for (int64_t r = g->r0; r < g->r1; r++)
        memset(p->packed + r * p->ldw + g->c0 / 4, 0, (size_t)bt_div_up(g->c1 - g->c0, 4));
}

/* The codes of a measured group, and its scale. */
static inline float bt_encode_group(const bt_ternary_quantize *p, const bt_group *g, bt_group_stats stats,
                                    const bt_group_passes *passes) {
    if (stats.absmax == 0 || stats.absmax >= 0x7f800000u) {
        bt_clear_group(p, g);
        return stats.absmax == 0 ? BT_SCALE_EPS : NAN;
    }
    const float absmax = bt_bits_float(stats.absmax), mean = (float)(stats.sum / (double)bt_group_count(g));
    const bt_group_sum encoded = passes->encode(p, g, bt_find_rule(p, g, absmax, mean));
    return bt_scale_of(p, absmax, mean, encoded.sum, encoded.kept);
}

static inline float bt_quantize_group(const bt_ternary_quantize *p, const bt_group *g, const bt_group_passes *passes) {
    return bt_encode_group(p, g, passes->measure(p, g), passes);
}

static inline void bt_quantize_tiles(const bt_ternary_quantize *p, int64_t tile_begin, int64_t tile_end,
                                     const bt_group_passes *passes) {
    if (p->lds == 0) {
        const bt_group all = {0, p->n, 0, p->k};
        p->scale[0] = bt_quantize_group(p, &all, passes);
        return;
    }
    for (int64_t r = tile_begin; r < tile_end; r++) {
        if (p->k == 0)
            p->scale[r] = BT_SCALE_EPS;
        float *scale = p->scale + r * p->lds;
        for (bt_group g = {r, r + 1, 0, p->group}; g.c0 < p->k; g.c0 += p->group, g.c1 += p->group)
            *scale++ = bt_quantize_group(p, &g, passes);
    }
}

/* The same by passes that work on vectors: nm34, and groups below min_group, are left to the scalar kernel. */
static inline bt_status bt_quantize_by_vectors(const bt_ternary_quantize *p, int64_t tile_begin, int64_t tile_end,
                                               int64_t min_group, const bt_group_passes *passes) {
    BT_ASSERT(p->w_type != BT_I8 && p->threshold_factor >= 0.0f);
    if (p->group < min_group || p->method == BT_METHOD_NM34)
        return bt_ternary_quantize_scalar(p, tile_begin, tile_end);
    bt_quantize_tiles(p, tile_begin, tile_end, passes);
    return BT_OK;
}

#endif
