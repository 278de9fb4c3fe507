/* The definition of ternary_quantize; see the header for the rules. Each group is read twice: for its statistics, then
 * for its codes. */
#include "quantize_group.h"

enum { SEGMENT = 1024, LANES = 8, MAX_DIGIT_BITS = 11, SHORT_DIGITS_BELOW = 4096 };

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

static void sum_add_squares(sum_t *sum, const float *w, int64_t count) {
    for (int64_t i = 0; i < count; i++)
        sum->lane[i % LANES] += (double)w[i] * (double)w[i];
}

static int64_t load_magnitudes(const bt_ternary_quantize *p, int64_t row, int64_t column, int64_t end, float *out) {
    const int64_t count = end - column < SEGMENT ? end - column : SEGMENT;
    bt_load_many(p->w, p->w_type, row * p->ldx + column, count, out);
    for (int64_t i = 0; i < count; i++)
        out[i] = fabsf(out[i]);
    return count;
}

static bt_group_stats measure(const bt_ternary_quantize *p, const bt_group *g) {
    float a[SEGMENT];
    sum_t sum = {{0}};
    uint32_t absmax = 0;
    for (int64_t r = g->r0; r < g->r1; r++)
        for (int64_t c = g->c0; c < g->c1; c += SEGMENT) {
            const int64_t count = load_magnitudes(p, r, c, g->c1, a);
            for (int64_t i = 0; i < count; i++) {
                const uint32_t bits = bt_float_bits(a[i]);
                absmax = bits > absmax ? bits : absmax;
            }
            if (bt_needs_mean(p))
                sum_add(&sum, a, count);
        }
    return (bt_group_stats){absmax, bt_sum_total(sum.lane)};
}

/* Magnitudes as keys: non-negative floats and their bits have the same order, and 31 bits are three digits of 11 or
 * four of 8. Few keys take the short digits, or the counters would cost more than the keys. */
static int digit_bits(int64_t count) {
    return count < SHORT_DIGITS_BELOW ? 8 : MAX_DIGIT_BITS;
}

/* Ascending. */
static const uint32_t *sort_keys(uint32_t *keys, uint32_t *other, int64_t count) {
    const int bits = digit_bits(count);
    const uint32_t mask = (1u << bits) - 1;
    for (int shift = 0; shift < 31; shift += bits) {
        int64_t start[(1 << MAX_DIGIT_BITS) + 1];
        for (uint32_t d = 0; d <= mask + 1; d++)
            start[d] = 0;
        for (int64_t i = 0; i < count; i++)
            start[(keys[i] >> shift & mask) + 1]++;
        if (start[(keys[0] >> shift & mask) + 1] == count)
            continue;
        for (uint32_t d = 0; d < mask; d++)
            start[d + 1] += start[d];
        for (int64_t i = 0; i < count; i++)
            other[start[keys[i] >> shift & mask]++] = keys[i];
        uint32_t *const swap = keys;
        keys = other;
        other = swap;
    }
    return keys;
}

/* The key that `rank` others come before: of the keys only those are kept that share its digit, from the highest on. */
static uint32_t select_key(uint32_t *keys, int64_t count, int64_t rank) {
    const int bits = digit_bits(count);
    const uint32_t mask = (1u << bits) - 1;
    for (int shift = 31; shift > 0 && count > 1;) {
        int64_t number[1 << MAX_DIGIT_BITS];
        for (uint32_t d = 0; d <= mask; d++)
            number[d] = 0;
        shift = shift > bits ? shift - bits : 0;
        for (int64_t i = 0; i < count; i++)
            number[keys[i] >> shift & mask]++;
        uint32_t digit = 0;
        while (rank >= number[digit])
            rank -= number[digit++];
        int64_t kept = 0;
        for (int64_t i = 0; i < count; i++) {
            keys[kept] = keys[i];
            kept += (keys[i] >> shift & mask) == digit;
        }
        count = kept;
    }
    return keys[rank];
}

static uint32_t *gather_keys(const bt_ternary_quantize *p, const bt_group *g) {
    uint32_t *const keys = (uint32_t *)p->workspace;
    float a[SEGMENT];
    int64_t filled = 0;
    for (int64_t r = g->r0; r < g->r1; r++)
        for (int64_t c = g->c0; c < g->c1; c += SEGMENT) {
            const int64_t length = load_magnitudes(p, r, c, g->c1, a);
            memcpy(keys + filled, a, (size_t)length * sizeof *a);
            filled += length;
        }
    return keys;
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

static float measured(const bt_ternary_quantize *p, const bt_group *g, float absmax, float mean) {
    const int64_t count = bt_group_count(g);
    switch (bt_method_by(p->method)) {
    case BT_BY_NOTHING:
        break;
    case BT_BY_MAX:
        return absmax;
    case BT_BY_MEAN:
        return mean;
    case BT_BY_MEDIAN:
        return bt_bits_float(select_key(gather_keys(p, g), count, (count - 1) / 2));
    case BT_BY_OPTIMUM: {
        uint32_t *const keys = gather_keys(p, g);
        return optimal_threshold(sort_keys(keys, keys + count, count), count);
    }
    }
    return 0.0f;
}

bt_keep_rule bt_find_rule(const bt_ternary_quantize *p, const bt_group *g, float absmax, float mean) {
    return bt_keep_rule_of(p->method, p->threshold_factor, measured(p, g, absmax, mean));
}

/* Codes of one segment; kept[i] becomes |w| where it is kept, else 0. Returns how many are kept. All in 32-bit lanes,
 * so that a compiler can do several at once. */
static int64_t encode_segment(const float *w, int64_t count, bt_keep_rule rule, float *kept, uint8_t *packed) {
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

static bt_group_sum encode(const bt_ternary_quantize *p, const bt_group *g, bt_keep_rule rule) {
    float w[SEGMENT], kept[SEGMENT];
    sum_t sum = {{0}};
    int64_t number = 0;
    for (int64_t r = g->r0; r < g->r1; r++)
        for (int64_t c = g->c0; c < g->c1; c += SEGMENT) {
            const int64_t count = g->c1 - c < SEGMENT ? g->c1 - c : SEGMENT;
            bt_load_many(p->w, p->w_type, r * p->ldx + c, count, w);
            if (bt_scale_adds(p->rule) == BT_ADDS_SQUARES)
                sum_add_squares(&sum, w, count);
            for (int64_t i = 0; p->method == BT_METHOD_NM34 && i + 4 <= count; i += 4)
                bt_drop_smallest(w + i);
            number += encode_segment(w, count, rule, kept, p->packed + r * p->ldw + c / 4);
            if (bt_scale_adds(p->rule) == BT_ADDS_KEPT)
                sum_add(&sum, kept, count);
        }
    return (bt_group_sum){bt_sum_total(sum.lane), number};
}

bt_status bt_ternary_quantize_scalar(const bt_ternary_quantize *p, int64_t tile_begin, int64_t tile_end) {
    static const bt_group_passes passes = {measure, encode};
    bt_quantize_tiles(p, tile_begin, tile_end, &passes);
    return BT_OK;
}
