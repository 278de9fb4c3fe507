/* ternary_linear_packed: the scalar kernel against sums in fp64, the others bit for bit against the scalar one. Those
 * that read pair order round otherwise: they too are compared with fp64, and a batch with its tokens one by one. */
#include "harness.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const double SUM_LIMIT = 0x1p-21; /* eight units of fp32 */
static const double L2_LIMIT = 1e-6;     /* of fp32 outputs; a few alone may be small differences of large sums */
enum { L2_COUNT = 64 };

typedef struct case_t {
    int64_t m, n, k, group; /* group 0: one scale for all */
    int x_type, y_type, bias_type, with_bias, gap, with_inf;
} case_t;

static void describe(const case_t *t, const char *variant) {
    set_context("ternary_linear_packed_%s m=%ld n=%ld k=%ld group=%ld x=%s y=%s bias=%s gap=%d inf=%d", variant,
                (long)t->m, (long)t->n, (long)t->k, (long)t->group, type_name(t->x_type), type_name(t->y_type),
                t->with_bias ? type_name(t->bias_type) : "none", t->gap, t->with_inf);
}

typedef struct reference_t {
    double value, size; /* the output, and the sum of the magnitudes that make it */
} reference_t;

/* In the natural order of columns; x is one row of p->x. */
static reference_t reference(const bt_ternary_linear_packed *p, const double *x, const int8_t *trits, int64_t r) {
    const double bias = p->bias ? value_at(p->bias, p->bias_type, r) : 0.0;
    reference_t of = {bias, fabs(bias)};
    for (int64_t begin = 0, g = 0; begin < p->k; begin += p->group, g++) {
        const double scale = (double)p->scale[r * p->lds + g];
        for (int64_t c = begin; c < begin + p->group; c++) {
            const double term = scale * (trits[c] * x[c]);
            of.value += term;
            of.size += fabs(term);
        }
    }
    return of;
}

/* What fp32 sums may lose of the magnitudes that they add, and then the output's type of the result. */
static double allowed_error(int y_type, reference_t of) {
    static const double units[] = {0x1p-24, 0x1p-11, 0x1p-8}, least[] = {0x1p-149, 0x1p-24, 0x1p-133};
    return SUM_LIMIT * of.size + units[y_type] * fabs(of.value) + least[y_type];
}

static void check_sums(const bt_ternary_linear_packed *p, const int8_t *trits) {
    double *x = malloc((size_t)(p->k + 1) * sizeof *x);
    double error = 0.0, norm = 0.0;
    int near = 1, pattern_agrees = 1;
    for (int64_t i = 0; i < p->m; i++) {
        for (int64_t c = 0; c < p->k; c++)
            x[c] = value_at(p->x, p->x_type, i * p->ldx + c);
        for (int64_t r = 0; r < p->n; r++) {
            const reference_t of = reference(p, x, trits + r * p->k, r);
            const double got = value_at(p->y, p->y_type, i * p->ldy + r);
            if (isfinite(of.value)) {
                near = near && fabs(got - of.value) <= allowed_error(p->y_type, of);
                error += (got - of.value) * (got - of.value);
                norm += of.value * of.value;
            } else
                pattern_agrees = pattern_agrees && (isnan(of.value) ? isnan(got) : got == of.value);
        }
    }
    free(x);
    check(near, "against fp64");
    if (p->y_type == BT_F32 && p->m * p->n >= L2_COUNT)
        check(error <= L2_LIMIT * L2_LIMIT * norm, "relative L2 against fp64");
    check(pattern_agrees, "NaN and Inf");
    check(gaps_untouched(p->y, p->m, p->n, p->ldy, p->y_type), "bytes between rows");
}

static void prepare(bt_ternary_linear_packed *p, int xp_type) {
    const int64_t padded = (p->k + 255) / 256 * 256;
    p->xp_type = xp_type;
    p->xp = buffer(matrix_bytes(p->m, padded, p->ldxp, xp_type));
    bt_ternary_linear_packed_prepare(p, 0, p->m);
    check(gaps_untouched(p->xp, p->m, padded, p->ldxp, xp_type), "bytes between prepared rows");
}

/* The tokens of p one by one. */
static void check_batch(const bt_ternary_linear_packed *p, bt_ternary_linear_packed_fn *run) {
    bt_ternary_linear_packed one = *p;
    int same = 1;
    one.m = 1;
    one.y = buffer((size_t)p->n * type_size(p->y_type));
    for (int64_t i = 0; i < p->m; i++) {
        const char *expected = (const char *)p->y + (size_t)(i * p->ldy) * type_size(p->y_type);
        one.xp = bt_packed_xp_row(p, i);
        run(&one, 0, bt_tiles(1, p->n));
        same = same && same_values(one.y, expected, p->y_type, p->n);
    }
    check(same, "bits of the batch, token by token");
}

/* Natural order, which is x itself in fp32: nothing may be read past the end of its last row. */
static void check_natural(bt_ternary_linear_packed p, bt_ternary_linear_packed_fn *run, const void *expected,
                          int64_t length) {
    const int64_t tiles = bt_tiles(p.m, p.n);
    p.xp_natural = 1;
    if (p.x_type == BT_F32) {
        p.xp = (void *)p.x;
        p.ldxp = p.ldx;
    } else {
        p.ldxp = p.k;
        p.xp = buffer((size_t)(p.m * p.k) * sizeof(float));
        bt_ternary_linear_packed_prepare(&p, 0, p.m);
    }
    p.y = buffer(matrix_bytes(p.m, p.n, p.ldy, p.y_type));
    run(&p, tiles / 2, tiles);
    run(&p, 0, tiles / 2);
    check(same_values(p.y, expected, p.y_type, length), "bits as scalar, natural order");
}

static void compare(const case_t *t, bt_ternary_linear_packed p, const void *expected, const int8_t *trits) {
    const int64_t tiles = bt_tiles(p.m, p.n), length = matrix_elements(p.m, p.n, p.ldy);
    for (const bt_kernel *kernel = NULL; (kernel = next_compared(kernel, BT_OP_ternary_linear_packed));) {
        if (!(kernel->dtypes & BT_SET(t->x_type)))
            continue;
        describe(t, kernel->variant);
        bt_ternary_linear_packed_fn *run = (bt_ternary_linear_packed_fn *)kernel->run;
        const int xp_type = bt_packed_xp_type(kernel->reads);
        if (xp_type != p.xp_type)
            prepare(&p, xp_type);
        p.y = buffer(matrix_bytes(p.m, p.n, p.ldy, p.y_type));
        run(&p, tiles / 2, tiles);
        run(&p, 0, tiles / 2);
        if (xp_type == BT_F32) {
            check(same_values(p.y, expected, p.y_type, length), "bits as scalar");
            if (bt_packed_may_be_natural(&p, kernel->reads))
                check_natural(p, run, expected, length);
            continue;
        }
        check_sums(&p, trits);
        check_batch(&p, run);
        p.y = buffer(matrix_bytes(p.m, p.n, p.ldy, p.y_type));
        bt_ternary_linear_packed_scalar(&p, 0, tiles);
        check(same_values(p.y, expected, p.y_type, length), "scalar of pair order");
    }
}

static void check_case(const case_t *t) {
    describe(t, "scalar");
    const int64_t groups = t->group && t->k ? t->k / t->group : 1, padded = (t->k + 255) / 256 * 256;
    bt_ternary_linear_packed p = {.m = t->m,
                                  .n = t->n,
                                  .k = t->k,
                                  .ldx = t->k + t->gap,
                                  .ldw = (t->k + 3) / 4 + t->gap,
                                  .ldy = t->n + t->gap,
                                  .lds = t->group ? groups : 0,
                                  .group = t->group ? t->group : t->k,
                                  .ldxp = padded + 256 * t->gap,
                                  .x_type = t->x_type,
                                  .y_type = t->y_type,
                                  .bias_type = t->bias_type};
    const int64_t elements = matrix_elements(t->m, t->k, p.ldx), scales = t->group ? t->n * groups : 1;
    int8_t *trits = malloc((size_t)(t->n * t->k) + 1);
    p.w = random_weights(t->n, t->k, p.ldw, trits);
    void *x = buffer((size_t)elements * type_size(t->x_type));
    float *scale = buffer((size_t)scales * sizeof *scale);
    void *bias = buffer((size_t)t->n * type_size(t->bias_type));
    fill_normal(x, t->x_type, elements);
    fill_normal(scale, BT_F32, scales);
    fill_normal(bias, t->bias_type, t->n);
    for (int64_t i = 0; t->with_inf && t->k && i < t->m; i += 2)
        store_value(x, t->x_type, i * p.ldx + random_below(t->k), i % 4 ? INFINITY : NAN);
    p.x = x, p.scale = scale, p.bias = t->with_bias ? bias : NULL;
    prepare(&p, BT_F32);
    p.y = buffer(matrix_bytes(t->m, t->n, p.ldy, t->y_type));
    bt_ternary_linear_packed_scalar(&p, 0, bt_tiles(t->m, t->n));
    check_sums(&p, trits);
    compare(t, p, p.y, trits);
    free(trits);
    release();
}

static void check_group(int64_t m, int64_t n, int64_t k, int64_t group, int with_inf) {
    static int turn;
    const int i = turn++;
    const case_t t = {.m = m,
                      .n = n,
                      .k = k,
                      .group = group,
                      .x_type = i % 3,
                      .y_type = i / 3 % 3,
                      .bias_type = i / 5 % 3,
                      .with_bias = i % 4 > 0,
                      .gap = i % 2 * 3,
                      .with_inf = with_inf};
    check_case(&t);
}

/* Inf in the only column that a row has: 0 * Inf is NaN, +-1 * Inf is +-Inf. */
static void check_inf_times_zero(void) {
    const float x = INFINITY, scale = 1.0f;
    const uint8_t w[3] = {0, 1, 2};
    float xp[256], y[3];
    bt_ternary_linear_packed p = {.x = &x,
                                  .w = w,
                                  .scale = &scale,
                                  .y = y,
                                  .xp = xp,
                                  .m = 1,
                                  .n = 3,
                                  .k = 1,
                                  .ldx = 1,
                                  .ldw = 1,
                                  .ldy = 3,
                                  .lds = 0,
                                  .group = 1,
                                  .ldxp = 256};
    set_context("ternary_linear_packed_scalar x=Inf");
    bt_ternary_linear_packed_prepare(&p, 0, 1);
    bt_ternary_linear_packed_scalar(&p, 0, 1);
    check(isnan(y[0]) && y[1] == INFINITY && y[2] == -INFINITY, "Inf times 0, +1, -1");
}

/* Multiplications of a problem that the pass which emulators run leaves to the other one. */
enum { LARGE = 2000000 };

void test_ternary_linear_packed(void) {
    static const int64_t group_k[] = {64, 128, 192, 256, 320, 512, 640, 768, 1280},
                         groups[] = {4, 20, 64, 128, 192, 256, 512};
    check_inf_times_zero();
    for (int j = 0; j < COUNT_N; j++)
        for (int l = 0; l < COUNT_M; l++) {
            const int64_t n = some_n[j], m = some_m[l];
            for (int i = 0; i < COUNT_K; i++) {
                if (at_end && m * n * some_k[i] > LARGE)
                    continue;
                check_group(m, n, some_k[i], 0, 0);
                check_group(m, n, some_k[i], some_k[i], (j + l) % 2);
            }
            for (int i = 0; i < 9; i++)
                for (int g = 0; g < 7; g++)
                    if (group_k[i] % groups[g] == 0 && (n < 65 || m < 65))
                        check_group(m, n, group_k[i], groups[g], (i + j) % 2);
        }
    check_group(130, 130, 300, 300, 1);
}
