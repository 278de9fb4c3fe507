/* ternary_quantize against the rules of its header, in fp64, and every variant bit for bit against the scalar kernel.
 *
 * For the rules the weights are multiples of 1/256, so that sums are exact in any order and scales must agree to the
 * last bit; many of them are equal and lie on thresholds. They fill the high bits of an fp32 alone, so that the codes
 * of the methods that sort are compared for normal numbers too. For the variants they are also normal numbers, and such
 * that the rounding of a scale shows the order of the sum. */
#include "harness.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { ORDINARY, SPECIAL, NORMAL, TIES, NEAR_ONE, LARGE }; /* weights */
enum { ZERO_GROUP = 1, NAN_GROUP = 2, INF_GROUP = 3, GROUP_KINDS = 5 };

static int descending(const void *a, const void *b) {
    const float x = *(const float *)a, y = *(const float *)b;
    return (x < y) - (x > y);
}

/* The magnitude from which on the optimal method keeps. */
static float optimal_from(const float *sorted, int64_t count) {
    double sum = 0.0, best = -1.0;
    float from = 0.0f;
    for (int64_t k = 1; k <= count; k++) {
        sum += (double)sorted[k - 1];
        if (sum * sum / (double)k > best) {
            best = sum * sum / (double)k;
            from = sorted[k - 1];
        }
    }
    return from;
}

typedef struct statistics_t {
    float most, mean, median, optimal;
} statistics_t;

/* Of nm34, for column `column` of a row of `width`. */
static int keeps_of_four(const float *row, int64_t column, int64_t width) {
    const int64_t first = column / 4 * 4;
    if (row[column] == 0.0f)
        return 0;
    if (first + 4 > width)
        return 1;
    for (int64_t c = first; c < first + 4; c++)
        if (fabsf(row[c]) < fabsf(row[column]) || (c < column && fabsf(row[c]) == fabsf(row[column])))
            return 1;
    return 0;
}

static int keeps(const bt_ternary_quantize *p, float a, statistics_t of) {
    const float f = p->threshold_factor;
    switch (p->method) {
    case BT_METHOD_MAX:
        return a > f * of.most;
    case BT_METHOD_TWN:
        return a > f * of.mean;
    case BT_METHOD_ABSMEAN:
        return a * (1.0f / fmaxf(of.mean, 1e-5f)) > f;
    case BT_METHOD_ABSMEDIAN:
        return a * (1.0f / fmaxf(of.median, 1e-5f)) > f;
    default:
        return a >= of.optimal;
    }
}

static float scale_reference(const bt_ternary_quantize *p, float most, float mean, double kept, double squares,
                             int64_t number) {
    static const float largest[] = {3.40282347e38f, 65504.0f, 3.38953139e38f};
    if (p->rule == BT_SCALE_MAX)
        return most;
    if (p->rule == BT_SCALE_MEAN)
        return fmaxf(mean, 1e-5f);
    if (number == 0)
        return 1e-5f;
    if (p->rule == BT_SCALE_RMS)
        return (float)fminl(sqrtl((long double)squares / (long double)number), (long double)largest[p->w_type]);
    return (float)(kept / (double)number);
}

/* One group, gathered into w[count], in rows of `width`. */
static float quantize_reference(const bt_ternary_quantize *p, const float *w, int64_t count, int64_t width,
                                int8_t *codes) {
    double sum = 0.0, kept = 0.0, squares = 0.0;
    int64_t number = 0;
    float most = 0.0f;
    int finite = 1;
    float *sorted = malloc((size_t)(count + 1) * sizeof *sorted);
    for (int64_t i = 0; i < count; i++) {
        sorted[i] = fabsf(w[i]);
        finite = finite && isfinite(w[i]);
        most = fmaxf(most, sorted[i]);
        sum += (double)sorted[i];
        squares += (double)w[i] * (double)w[i];
        codes[i] = 0;
    }
    const float mean = (float)(sum / (double)count);
    if (finite && most > 0.0f) {
        qsort(sorted, (size_t)count, sizeof *sorted, descending);
        const statistics_t of = {most, mean, sorted[count - 1 - (count - 1) / 2], optimal_from(sorted, count)};
        for (int64_t i = 0; i < count; i++)
            if (p->method == BT_METHOD_NM34 ? keeps_of_four(w + i - i % width, i % width, width)
                                            : keeps(p, fabsf(w[i]), of)) {
                codes[i] = (int8_t)(w[i] > 0.0f ? 1 : -1);
                kept += (double)fabsf(w[i]);
                number++;
            }
    }
    free(sorted);
    if (!finite)
        return NAN;
    if (count == 0 || !(most > 0.0f))
        return 1e-5f;
    return scale_reference(p, most, mean, kept, squares, number);
}

/* SPECIAL: groups by turns ordinary, zero, with a NaN, with an Inf, ordinary. */
static float special_weight(int64_t group, int64_t column, int64_t width, float ordinary) {
    const int there = column % width == group * 37 % width;
    switch (group % GROUP_KINDS) {
    case ZERO_GROUP:
        return column % 2 ? -0.0f : 0.0f;
    case NAN_GROUP:
        return there ? NAN : ordinary;
    case INF_GROUP:
        return there ? -INFINITY : ordinary;
    default:
        return ordinary;
    }
}

static void fill(const bt_ternary_quantize *p, void *w, int64_t groups, int weights) {
    for (int64_t r = 0; r < p->n; r++)
        for (int64_t c = 0; c < p->k; c++) {
            const int64_t g = p->lds == 0 ? p->k + p->method : r * groups + c / p->group;
            float value = (float)(random_below(257) - 128) / 256.0f;
            if (weights == NORMAL)
                value = random_normal();
            if (weights == NEAR_ONE)
                value = 1.0f + (float)random_below(200) * 0x1p-23f;
            if (weights == LARGE)
                value = ldexpf(random_below(2) ? 1.75f : -1.75f,
                               (p->w_type == BT_F16 ? 15 : 127) - 3 * (random_below(64) == 0));
            if (weights == SPECIAL)
                value = special_weight(g, c, p->group, value);
            store_value(w, p->w_type, r * p->ldx + c, value);
        }
}

/* The mean of a group is 1 + 2^-24, the middle between two fp32, and a little more. The lane that begins with the large
 * number does not see the little ones, each below half a unit of its fp64; another lane does, or three that come before
 * it. */
static void fill_ties(const bt_ternary_quantize *p, float *w) {
    const int64_t rows = p->lds == 0 ? p->n : 1, count = rows * p->group;
    for (int64_t first = 0; first < p->n; first += rows)
        for (int64_t begin = 0; begin < p->k; begin += p->group) {
            const int64_t large = random_below(32), small = (large + 1 + random_below(count - 1)) % count;
            const int64_t lane = random_below(2) ? large % 8 : random_below(8);
            for (int64_t i = 0; i < count; i++) {
                const int64_t c = i % p->group;
                w[(first + i / p->group) * p->ldx + begin + c] = i == large      ? (float)count
                                                                 : i == small    ? (float)count * 0x1p-24f
                                                                 : c % 8 == lane ? (float)count * 0x1p-55f
                                                                                 : 0x1p-100f;
            }
        }
}

/* The same for rms: of a group in which only the large number is kept, the sum of squares is (1 + 2^-24)^2 + 2^-52,
 * whose root is the middle between two fp32 in fp64, and above it where three of the little ones are added before the
 * large. */
static void fill_square_ties(const bt_ternary_quantize *p, float *w) {
    const int64_t rows = p->lds == 0 ? p->n : 1, count = rows * p->group;
    for (int64_t first = 0; first < p->n; first += rows)
        for (int64_t begin = 0; begin < p->k; begin += p->group) {
            const int64_t large = random_below(32), small = large + 1 + random_below(count - 4);
            const int64_t lane = random_below(2) ? large % 8 : random_below(8);
            for (int64_t i = 0; i < count; i++)
                w[(first + i / p->group) * p->ldx + begin + i % p->group] =
                    i % p->group % 8 == lane ? 0x1.cp-28f : 0x1p-60f;
            const int64_t places[] = {large, small % count, (small + 1) % count, (small + 2) % count,
                                      (small + 3) % count};
            const float values[] = {1.0f, 0x1p-12f, 0x1p-12f, 0x1p-24f, 0x1p-26f};
            for (int j = 0; j < 5; j++)
                w[(first + places[j] / p->group) * p->ldx + begin + places[j] % p->group] = values[j];
        }
}

static void compare(const bt_ternary_quantize *p, int64_t groups, int64_t bytes, int sums_are_exact) {
    const int64_t size = p->lds == 0 ? p->n * p->k : p->group;
    float *w = malloc((size_t)(size + 1) * sizeof *w);
    int8_t *codes = malloc((size_t)(size + 1));
    int codes_agree = 1, scales_agree = 1;
    for (int64_t g = 0; g < (p->lds == 0 ? 1 : p->n * groups); g++) {
        const int64_t row = p->lds == 0 ? 0 : g / groups, column = p->lds == 0 ? 0 : g % groups * p->group;
        const int64_t width = p->lds == 0 ? p->k : p->group;
        for (int64_t i = 0; i < size; i++)
            w[i] = (float)value_at(p->w, p->w_type, (row + i / width) * p->ldx + column + i % width);
        const float scale = quantize_reference(p, w, size, width, codes);
        scales_agree = scales_agree && same_values(&scale, &p->scale[g], BT_F32, 1);
        for (int64_t i = 0; i < size; i++) {
            const int64_t c = column + i % width;
            const int code = p->packed[(row + i / width) * p->ldw + c / 4] >> (2 * (c % 4)) & 3;
            codes_agree = codes_agree && code == (codes[i] == 0 ? 0 : codes[i] == 1 ? 1 : 2);
        }
    }
    for (int64_t r = 0; r < p->n && p->k % 4; r++)
        codes_agree = codes_agree && p->packed[r * p->ldw + bytes - 1] >> (2 * (p->k % 4)) == 0;
    check(codes_agree, "codes");
    check(scales_agree || !sums_are_exact, "scales");
    check(gaps_untouched(p->packed, p->n, bytes, p->ldw, BT_I8), "bytes between rows");
    free(w);
    free(codes);
}

static void compare_variants(bt_ternary_quantize p, int64_t scales, int64_t bytes) {
    const int64_t tiles = bt_ternary_quantize_tiles(&p);
    const uint8_t *packed = p.packed;
    const float *scale = p.scale;
    for (const bt_kernel *kernel = NULL; (kernel = next_compared(kernel, BT_OP_ternary_quantize));) {
        if (!(kernel->dtypes & BT_SET(p.w_type)))
            continue;
        bt_ternary_quantize_fn *run = (bt_ternary_quantize_fn *)kernel->run;
        p.packed = buffer(matrix_bytes(p.n, bytes, p.ldw, BT_I8));
        p.scale = buffer((size_t)scales * sizeof *scale);
        run(&p, tiles / 2, tiles);
        if (tiles / 2)
            run(&p, 0, tiles / 2);
        check(same_values(p.packed, packed, BT_I8, matrix_elements(p.n, bytes, p.ldw)), kernel->variant);
        check(same_values(p.scale, scale, BT_F32, scales), kernel->variant);
    }
}

/* group: 0 for the whole matrix, k for rows. Returns the first scale. */
static float check_quantize(int64_t n, int64_t k, int64_t group, int type, int method, int rule, int weights) {
    set_context("ternary_quantize n=%ld k=%ld group=%ld %s method=%d rule=%d weights=%d", (long)n, (long)k, (long)group,
                type_name(type), method, rule, weights);
    static const float factors[] = {0.25f, 0.75f, 0.5f, 0.5f, 0.0f, 0.0f};
    const int64_t bytes = (k + 3) / 4, groups = group && k ? k / group : 1, gap = weights == ORDINARY ? 0 : 5;
    const int64_t scales = group ? n * groups : 1;
    bt_ternary_quantize p = {.n = n,
                             .k = k,
                             .ldx = k + gap,
                             .ldw = bytes + gap,
                             .lds = group ? groups : 0,
                             .group = group ? group : k,
                             .w_type = type,
                             .method = method,
                             .rule = rule};
    void *w = buffer(matrix_bytes(n, k, p.ldx, type));
    if (weights == TIES && rule == BT_SCALE_RMS)
        fill_square_ties(&p, w);
    else if (weights == TIES)
        fill_ties(&p, w);
    else
        fill(&p, w, groups, weights);
    p.w = w;
    p.packed = buffer(matrix_bytes(n, bytes, p.ldw, BT_I8));
    p.scale = buffer((size_t)scales * sizeof *p.scale);
    p.threshold_factor = weights == TIES                                 ? (rule == BT_SCALE_RMS ? 0.5f : 0.0f)
                         : weights == NEAR_ONE                           ? 1.0f
                         : weights == SPECIAL && method == BT_METHOD_MAX ? 1.5f
                                                                         : factors[method];
    p.workspace = buffer(bt_ternary_quantize_workspace(&p));
    const int64_t tiles = bt_ternary_quantize_tiles(&p);
    bt_ternary_quantize_scalar(&p, tiles / 2, tiles);
    if (tiles / 2)
        bt_ternary_quantize_scalar(&p, 0, tiles / 2);
    if (k == 0)
        check(n == 0 || p.scale[0] == 1e-5f, "scale of empty rows");
    else if (weights == ORDINARY || weights == SPECIAL || weights == NEAR_ONE || weights == LARGE)
        compare(&p, groups, bytes, 1);
    else if (weights == NORMAL && (method == BT_METHOD_ABSMEDIAN || method == BT_METHOD_OPTIMAL))
        compare(&p, groups, bytes, 0);
    compare_variants(p, scales, bytes);
    const float first = scales ? p.scale[0] : 0.0f;
    release();
    return first;
}

/* Both ways of rounding must occur, or the order of the sums does not show. */
static void check_order_of_sums(void) {
    static const int64_t columns[] = {36, 64, 100, 1024, 2052}, groups[] = {36, 64, 100, 128, 2052};
    static const int rules[] = {BT_SCALE_LS, BT_SCALE_MEAN, BT_SCALE_RMS};
    for (int r = 0; r < 3; r++)
        for (int whole = 0; whole < 2; whole++) {
            int down = 0, up = 0;
            for (int i = 0; i < 100; i++) {
                const int64_t k = columns[i % 5], group = whole ? 0 : groups[i % 5];
                const int method = rules[r] == BT_SCALE_RMS ? BT_METHOD_MAX : BT_METHOD_TWN;
                const float scale = check_quantize(3, k, group, BT_F32, method, rules[r], TIES);
                down += scale == 1.0f;
                up += scale == 1.0f + 0x1p-23f;
            }
            check(down > 9 && up > 9 && down + up == 100, "ties fall both ways");
        }
}

static void check_groups(int64_t n, int64_t k, int type, int method, int rule, int weights) {
    static const int64_t groups[] = {4, 20, 36, 64, 100, 128, 256};
    check_quantize(n, k, k, type, method, rule, weights);
    if (n * k > 0)
        check_quantize(n, k, 0, type, method, rule, weights);
    for (int i = 0; i < 7; i++)
        if (k > 0 && k % groups[i] == 0 && (groups[i] > 4 || k % 20))
            check_quantize(n, k, groups[i], type, method, rule, weights);
}

/* Magnitudes whose squares no fp32 holds: the scale stays finite in the type of w, its largest number where rms is
 * more. */
static void check_large(void) {
    int clamped = 0, below = 0;
    for (int method = 0; method < BT_METHOD_COUNT; method++)
        for (int type = BT_F32; type <= BT_BF16; type++) {
            const float scale =
                check_quantize(3, 260, method == BT_METHOD_NM34 ? 4 : 52, type, method, BT_SCALE_RMS, LARGE);
            clamped += scale == (float)bt_largest_of(type);
            below += scale < (float)bt_largest_of(type);
        }
    check(clamped && below && clamped + below == 3 * BT_METHOD_COUNT, "scales of large weights");
}

void test_ternary_quantize(void) {
    static const int64_t rows[] = {0, 1, 5}, columns[] = {0, 1, 3, 4, 5, 33, 63, 64, 65, 108, 256, 257, 1000, 2560};
    int turn = 0;
    check_order_of_sums();
    check_large();
    for (int method = BT_METHOD_ABSMEDIAN; method <= BT_METHOD_OPTIMAL; method++)
        check_groups(3, 2560, BT_F32, method, BT_SCALE_LS, NEAR_ONE);
    for (int method = 0; method < BT_METHOD_COUNT; method++)
        for (int rule = 0; rule < BT_SCALE_COUNT; rule++)
            for (int i = 0; i < 14; i++)
                for (int j = 0; j < 3; j++)
                    for (int weights = ORDINARY; weights <= NORMAL; weights++)
                        check_groups(rows[j], columns[i], turn++ % 3, method, rule, weights);
}
