/* ternary_quantize against the rules of its header, in fp64. The weights are multiples of 1/256, so that sums are exact
 * in any order and scales must agree to the last bit; many of them are equal and lie on thresholds. */
#include "harness.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

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

/* One group, gathered into w[count]. */
static float quantize_reference(const bt_ternary_quantize *p, const float *w, int64_t count, int8_t *codes) {
    double sum = 0.0, kept = 0.0;
    int64_t number = 0;
    float most = 0.0f;
    int finite = 1;
    float *sorted = malloc((size_t)(count + 1) * sizeof *sorted);
    for (int64_t i = 0; i < count; i++) {
        sorted[i] = fabsf(w[i]);
        finite = finite && isfinite(w[i]);
        most = fmaxf(most, sorted[i]);
        sum += (double)sorted[i];
        codes[i] = 0;
    }
    const float mean = (float)(sum / (double)count);
    if (finite && most > 0.0f) {
        qsort(sorted, (size_t)count, sizeof *sorted, descending);
        const statistics_t of = {most, mean, sorted[count - 1 - (count - 1) / 2], optimal_from(sorted, count)};
        for (int64_t i = 0; i < count; i++)
            if (keeps(p, fabsf(w[i]), of)) {
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
    if (p->rule == BT_SCALE_MAX)
        return most;
    if (p->rule == BT_SCALE_MEAN)
        return fmaxf(mean, 1e-5f);
    return number ? (float)(kept / (double)number) : 1e-5f;
}

/* Groups by turns: ordinary, zero, with a NaN, with an Inf, ordinary. */
static void fill(const bt_ternary_quantize *p, void *w, int64_t groups, int special) {
    for (int64_t r = 0; r < p->n; r++)
        for (int64_t c = 0; c < p->k; c++) {
            const int64_t g = p->lds == 0 ? 0 : r * groups + c / p->group, first = c % p->group == 0;
            const int kind = special ? (int)(g % GROUP_KINDS) : 0;
            float value = (float)(random_below(257) - 128) / 256.0f;
            if (kind == ZERO_GROUP)
                value = c % 2 ? -0.0f : 0.0f;
            else if (kind == NAN_GROUP && first)
                value = NAN;
            else if (kind == INF_GROUP && first)
                value = -INFINITY;
            store_value(w, p->w_type, r * p->ldx + c, value);
        }
}

static void compare(const bt_ternary_quantize *p, int64_t groups, int64_t bytes) {
    const int64_t size = p->lds == 0 ? p->n * p->k : p->group;
    float *w = malloc((size_t)(size + 1) * sizeof *w);
    int8_t *codes = malloc((size_t)(size + 1));
    int codes_agree = 1, scales_agree = 1;
    for (int64_t g = 0; g < (p->lds == 0 ? 1 : p->n * groups); g++) {
        const int64_t row = p->lds == 0 ? 0 : g / groups, column = p->lds == 0 ? 0 : g % groups * p->group;
        const int64_t width = p->lds == 0 ? p->k : p->group;
        for (int64_t i = 0; i < size; i++)
            w[i] = (float)value_at(p->w, p->w_type, (row + i / width) * p->ldx + column + i % width);
        const float scale = quantize_reference(p, w, size, codes);
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
    check(scales_agree, "scales");
    check(gaps_untouched(p->packed, p->n, bytes, p->ldw, BT_I8), "bytes between rows");
    free(w);
    free(codes);
}

/* group: 0 for the whole matrix, k for rows. */
static void check_quantize(int64_t n, int64_t k, int64_t group, int type, int method, int rule, int special) {
    set_context("ternary_quantize n=%ld k=%ld group=%ld %s method=%d rule=%d special=%d", (long)n, (long)k, (long)group,
                type_name(type), method, rule, special);
    static const float factors[] = {0.25f, 0.75f, 0.5f, 0.5f, 0.0f};
    const int64_t bytes = (k + 3) / 4, groups = group && k ? k / group : 1, gap = special ? 5 : 0;
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
    fill(&p, w, groups, special);
    p.w = w;
    p.packed = buffer(matrix_bytes(n, bytes, p.ldw, BT_I8));
    p.scale = buffer((size_t)(group ? n * groups : 1) * sizeof *p.scale);
    p.threshold_factor = special && method == BT_METHOD_MAX ? 1.5f : factors[method];
    p.workspace = buffer(bt_ternary_quantize_workspace(&p));
    const int64_t tiles = bt_ternary_quantize_tiles(&p);
    bt_ternary_quantize_scalar(&p, tiles / 2, tiles);
    if (tiles / 2)
        bt_ternary_quantize_scalar(&p, 0, tiles / 2);
    if (k > 0)
        compare(&p, groups, bytes);
    else
        check(n == 0 || p.scale[0] == 1e-5f, "scale of empty rows");
    release();
}

void test_ternary_quantize(void) {
    static const int64_t rows[] = {0, 1, 5}, columns[] = {0, 1, 3, 4, 5, 63, 64, 256, 1000, 2560};
    int turn = 0;
    for (int method = BT_METHOD_MAX; method <= BT_METHOD_OPTIMAL; method++)
        for (int rule = BT_SCALE_LS; rule <= BT_SCALE_MAX; rule++)
            for (int i = 0; i < 10; i++)
                for (int j = 0; j < 3; j++)
                    for (int special = 0; special < 2; special++) {
                        const int64_t k = columns[i], n = rows[j];
                        const int type = turn++ % 3;
                        check_quantize(n, k, k, type, method, rule, special);
                        if (n * k > 0)
                            check_quantize(n, k, 0, type, method, rule, special);
                        if (k % 64 == 0 && k)
                            check_quantize(n, k, 64, type, method, rule, special);
                        if (k % 4 == 0 && k)
                            check_quantize(n, k, k % 20 == 0 ? 20 : 4, type, method, rule, special);
                    }
}
