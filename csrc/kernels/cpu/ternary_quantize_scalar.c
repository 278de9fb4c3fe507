/* The definition of ternary_quantize; see the header for the rules. Each group is read twice: for its statistics, then
 * for its codes. */
#include "../ternary_quantize.h"
#include "half.h"

#include <math.h>
#include <string.h>

enum { SEGMENT = 1024, LANES = 8, DIGIT_BITS = 11, DIGITS = 1 << DIGIT_BITS };

/* Columns [c0, c1) of rows [r0, r1): what shares one scale. */
typedef struct group_t {
    int64_t r0, r1, c0, c1;
} group_t;

typedef struct stats_t {
    uint32_t absmax; /* as bits: a NaN is above Inf, Inf above every number */
    double sum;
} stats_t;

/* keep fl(|w| * multiplier) > threshold */
typedef struct rule_t {
    float multiplier, threshold;
} rule_t;

/* Eight partial sums, because one is a chain of additions that no compiler may reorder. */
typedef struct sum_t {
    double lane[LANES];
} sum_t;

static void sum_add(sum_t *sum, const float *a, int64_t count) {
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES)
        for (int l = 0; l < LANES; l++)
            sum->lane[l] += (double)a[i + l];
    for (; i < count; i++)
        sum->lane[i % LANES] += (double)a[i];
}

static double sum_total(const sum_t *sum) {
    const double *s = sum->lane;
    return ((s[0] + s[1]) + (s[2] + s[3])) + ((s[4] + s[5]) + (s[6] + s[7]));
}

static void load_segment(const bt_ternary_quantize *p, int64_t row, int64_t column, int64_t count, float *out) {
    const int64_t at = row * p->ldx + column;
    if (p->w_type == BT_F32)
        memcpy(out, (const float *)p->w + at, (size_t)count * sizeof *out);
    else
        for (int64_t i = 0; i < count; i++)
            out[i] = bt_load(p->w, p->w_type, at + i);
}

static int64_t load_magnitudes(const bt_ternary_quantize *p, int64_t row, int64_t column, int64_t end, float *out) {
    const int64_t count = end - column < SEGMENT ? end - column : SEGMENT;
    load_segment(p, row, column, count, out);
    for (int64_t i = 0; i < count; i++)
        out[i] = fabsf(out[i]);
    return count;
}

static stats_t measure(const bt_ternary_quantize *p, group_t g) {
    float a[SEGMENT];
    sum_t sum = {{0}};
    uint32_t absmax = 0;
    for (int64_t r = g.r0; r < g.r1; r++)
        for (int64_t c = g.c0; c < g.c1; c += SEGMENT) {
            const int64_t count = load_magnitudes(p, r, c, g.c1, a);
            for (int64_t i = 0; i < count; i++) {
                const uint32_t bits = bt_float_bits(a[i]);
                absmax = bits > absmax ? bits : absmax;
            }
            sum_add(&sum, a, count);
        }
    return (stats_t){absmax, sum_total(&sum)};
}

/* Ascending, by the bits: non-negative floats and their bits have the same order. Three passes of 11 bits cover the 31.
 */
static const uint32_t *sort_bits(uint32_t *keys, uint32_t *other, int64_t count) {
    for (int shift = 0; shift < 31; shift += DIGIT_BITS) {
        int64_t start[DIGITS + 1] = {0};
        for (int64_t i = 0; i < count; i++)
            start[(keys[i] >> shift & (DIGITS - 1)) + 1]++;
        for (int d = 0; d < DIGITS; d++)
            start[d + 1] += start[d];
        for (int64_t i = 0; i < count; i++)
            other[start[keys[i] >> shift & (DIGITS - 1)]++] = keys[i];
        uint32_t *const swap = keys;
        keys = other;
        other = swap;
    }
    return keys;
}

static const uint32_t *sort_group(const bt_ternary_quantize *p, group_t g) {
    const int64_t count = (g.r1 - g.r0) * (g.c1 - g.c0);
    uint32_t *const keys = (uint32_t *)p->workspace;
    float a[SEGMENT];
    int64_t filled = 0;
    for (int64_t r = g.r0; r < g.r1; r++)
        for (int64_t c = g.c0; c < g.c1; c += SEGMENT) {
            const int64_t length = load_magnitudes(p, r, c, g.c1, a);
            memcpy(keys + filled, a, (size_t)length * sizeof *a);
            filled += length;
        }
    return sort_bits(keys, keys + count, count);
}

/* The threshold below the smallest kept magnitude. Equal magnitudes are kept together: with S and k before them, (S + j
 * v)^2 / (k + j) is convex in j, so its maximum lies where none or all of them are kept. */
static float optimal_threshold(const uint32_t *ascending, int64_t count) {
    double sum = 0.0, best = 0.0;
    uint32_t cut = 1;
    for (int64_t i = count - 1; i >= 0; i--) {
        sum += (double)bt_bits_float(ascending[i]);
        if (i > 0 && ascending[i - 1] == ascending[i])
            continue;
        const double gain = sum * sum / (double)(count - i);
        if (gain > best) {
            best = gain;
            cut = ascending[i];
        }
    }
    return bt_bits_float(cut - 1);
}

static rule_t find_rule(const bt_ternary_quantize *p, group_t g, float absmax, float mean) {
    const float f = p->threshold_factor;
    const int64_t count = (g.r1 - g.r0) * (g.c1 - g.c0);
    switch (p->method) {
    case BT_METHOD_TWN:
        return (rule_t){1.0f, f * mean};
    case BT_METHOD_ABSMEAN:
        return (rule_t){1.0f / fmaxf(mean, BT_SCALE_EPS), f};
    case BT_METHOD_ABSMEDIAN: {
        const float median = bt_bits_float(sort_group(p, g)[(count - 1) / 2]);
        return (rule_t){1.0f / fmaxf(median, BT_SCALE_EPS), f};
    }
    case BT_METHOD_OPTIMAL:
        return (rule_t){1.0f, optimal_threshold(sort_group(p, g), count)};
    default:
        return (rule_t){1.0f, f * absmax};
    }
}

/* Codes of one segment; kept[i] becomes |w| where it is kept, else 0. Returns how many are kept. All in 32-bit lanes,
 * so that a compiler can do several at once. */
static int64_t encode_segment(const float *w, int64_t count, rule_t rule, float *kept, uint8_t *packed) {
    int32_t code[SEGMENT + 3];
    int32_t number = 0;
    for (int64_t i = 0; i < count; i++) {
        const float a = fabsf(w[i]);
        const int32_t keep = a * rule.multiplier > rule.threshold;
        kept[i] = keep ? a : 0.0f;
        code[i] = keep ? (w[i] < 0.0f ? 2 : 1) : 0;
        number += keep;
    }
    for (int64_t i = count; i % 4 != 0; i++)
        code[i] = 0;
    for (int64_t j = 0; j < bt_div_up(count, 4); j++)
        packed[j] = (uint8_t)(code[4 * j] | code[4 * j + 1] << 2 | code[4 * j + 2] << 4 | code[4 * j + 3] << 6);
    return number;
}

/* Writes the codes of a group and returns the least-squares scale, the mean of what is kept. */
static float encode(const bt_ternary_quantize *p, group_t g, rule_t rule) {
    float w[SEGMENT], kept[SEGMENT];
    sum_t sum = {{0}};
    int64_t number = 0;
    for (int64_t r = g.r0; r < g.r1; r++)
        for (int64_t c = g.c0; c < g.c1; c += SEGMENT) {
            const int64_t count = g.c1 - c < SEGMENT ? g.c1 - c : SEGMENT;
            load_segment(p, r, c, count, w);
            number += encode_segment(w, count, rule, kept, p->packed + r * p->ldw + c / 4);
            sum_add(&sum, kept, count);
        }
    return number ? (float)(sum_total(&sum) / (double)number) : BT_SCALE_EPS;
}

static void clear(const bt_ternary_quantize *p, group_t g) {
    for (int64_t r = g.r0; r < g.r1; r++)
        memset(p->packed + r * p->ldw + g.c0 / 4, 0, (size_t)bt_div_up(g.c1 - g.c0, 4));
}

static float quantize_group(const bt_ternary_quantize *p, group_t g) {
    const stats_t stats = measure(p, g);
    if (stats.absmax == 0 || stats.absmax >= 0x7f800000u) {
        clear(p, g);
        return stats.absmax == 0 ? BT_SCALE_EPS : NAN;
    }
    const float absmax = bt_bits_float(stats.absmax);
    const float mean = (float)(stats.sum / (double)((g.r1 - g.r0) * (g.c1 - g.c0)));
    const float ls = encode(p, g, find_rule(p, g, absmax, mean));
    return p->rule == BT_SCALE_MAX ? absmax : p->rule == BT_SCALE_MEAN ? fmaxf(mean, BT_SCALE_EPS) : ls;
}

bt_status bt_ternary_quantize_scalar(const bt_ternary_quantize *p, int64_t tile_begin, int64_t tile_end) {
    if (p->lds == 0) {
        p->scale[0] = quantize_group(p, (group_t){0, p->n, 0, p->k});
        return BT_OK;
    }
    for (int64_t r = tile_begin; r < tile_end; r++) {
        if (p->k == 0)
            p->scale[r] = BT_SCALE_EPS;
        for (int64_t c = 0, g = 0; c < p->k; c += p->group, g++)
            p->scale[r * p->lds + g] = quantize_group(p, (group_t){r, r + 1, c, c + p->group});
    }
    return BT_OK;
}
