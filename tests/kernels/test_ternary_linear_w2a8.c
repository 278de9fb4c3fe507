/* ternary_linear_w2a8: the scalar kernel against exact sums and the stated epilogue, the others against the scalar one.
 */
#include "harness.h"

#include <stdlib.h>
#include <string.h>

enum { RANDOM_WEIGHTS, ALL_PLUS, ALL_MINUS, WEIGHT_FILLS };

typedef struct case_t {
    int64_t m, n, k, group; /* group 0: one scale for all */
    int y_type, bias_type, with_bias, gap, fill, weights, digits;
} case_t;

static void describe(const case_t *t, const char *variant) {
    set_context("ternary_linear_w2a8_%s m=%ld n=%ld k=%ld group=%ld y=%s bias=%s gap=%d fill=%d weights=%d digits=%d",
                variant, (long)t->m, (long)t->n, (long)t->k, (long)t->group, type_name(t->y_type),
                t->with_bias ? type_name(t->bias_type) : "none", t->gap, t->fill, t->weights, t->digits);
}

/* Codes in natural order, and in planes where the kernels read them. */
static void fill_codes(const case_t *t, int8_t *codes, int8_t *q, int64_t ldq, int32_t *sum) {
    for (int64_t i = 0; i < t->digits * t->m; i++) {
        memset(q + i * ldq, 0, (size_t)((t->k + 255) / 256 * 256));
        sum[i] = 0;
        for (int64_t c = 0; c < t->k; c++) {
            const int8_t code = byte_of(t->fill, c);
            codes[i * t->k + c] = code;
            q[i * ldq + c / 256 * 256 + c % 4 * 64 + c % 256 / 4] = code;
            sum[i] += code;
        }
    }
}

static void fill_weights(const case_t *t, uint8_t *w, int64_t ldw, int8_t *trits) {
    const int8_t trit = t->weights == ALL_PLUS ? 1 : -1;
    for (int64_t r = 0; r < t->n; r++)
        for (int64_t c = 0; c < t->k; c++) {
            uint8_t *byte = w + r * ldw + c / 4;
            *byte = (uint8_t)((c % 4 ? *byte : 0) | (trit == 1 ? 1 : 2) << (2 * (c % 4)));
            trits[r * t->k + c] = trit;
        }
}

static int64_t dot(const bt_ternary_linear_w2a8 *p, const int8_t *code, const int8_t *trit, int64_t begin) {
    int64_t sum = 0;
    for (int64_t c = begin; c < begin + p->group; c++)
        sum += (int64_t)trit[c] * code[c];
    return sum;
}

/* Exact sums, then the epilogue of the header; codes holds a row for each digit. */
static float expected_sum(const bt_ternary_linear_w2a8 *p, const int8_t *code, const int8_t *trit, int64_t i,
                          int64_t r) {
    float sum = 0.0f;
    double wide_sum = 0.0;
    for (int64_t begin = 0; begin < p->k; begin += p->group) {
        const float scale = p->scale[r * p->lds + begin / p->group];
        if (p->digits == 1) {
            const float factor = p->q_scale[i] * scale;
            const float product = (float)dot(p, code, trit, begin) * factor;
            sum += product;
            continue;
        }
        int64_t joined = 0;
        for (int d = p->digits - 1; d >= 0; d--)
            joined = 256 * joined + dot(p, code + d * p->k, trit, begin);
        const double scaled = (double)joined * p->q_step[i];
        const double product = scaled * (double)scale;
        wide_sum += product;
    }
    return p->digits == 1 ? sum : (float)wide_sum;
}

static void check_scalar(const bt_ternary_linear_w2a8 *p, const int8_t *codes, const int8_t *trits) {
    int agrees = 1;
    for (int64_t i = 0; i < p->m; i++)
        for (int64_t r = 0; r < p->n; r++) {
            const float sum = expected_sum(p, codes + p->digits * i * p->k, trits + r * p->k, i, r);
            agrees = agrees && is_finished(p->y, p->y_type, i * p->ldy + r, sum, p->bias, p->bias_type, r);
        }
    check(agrees, "scalar against exact sums");
    check(gaps_untouched(p->y, p->m, p->n, p->ldy, p->y_type), "bytes between rows");
}

static void compare(const case_t *t, bt_ternary_linear_w2a8 p, const void *expected) {
    const int64_t tiles = bt_tiles(p.m, p.n), length = matrix_elements(p.m, p.n, p.ldy);
    for (const bt_kernel *kernel = NULL; (kernel = next_compared(kernel, BT_OP_ternary_linear_w2a8));) {
        describe(t, kernel->variant);
        bt_ternary_linear_w2a8_fn *run = (bt_ternary_linear_w2a8_fn *)kernel->run;
        p.y = buffer(matrix_bytes(p.m, p.n, p.ldy, p.y_type));
        run(&p, tiles / 2, tiles);
        run(&p, 0, tiles / 2);
        check(same_values(p.y, expected, p.y_type, length), "bits as scalar");
    }
}

static void check_case(const case_t *t) {
    describe(t, "scalar");
    const int64_t groups = t->group && t->k ? t->k / t->group : 1, padded = (t->k + 255) / 256 * 256;
    bt_ternary_linear_w2a8 p = {.m = t->m,
                                .n = t->n,
                                .k = t->k,
                                .ldq = padded + 256 * t->gap,
                                .ldw = (t->k + 3) / 4 + t->gap,
                                .ldy = t->n + t->gap,
                                .lds = t->group ? groups : 0,
                                .group = t->group ? t->group : t->k,
                                .y_type = t->y_type,
                                .bias_type = t->bias_type,
                                .digits = t->digits};
    const int64_t scales = t->group ? t->n * groups : 1;
    int8_t *trits = malloc((size_t)(t->n * t->k) + 1), *codes = malloc((size_t)(t->digits * t->m * t->k) + 1);
    uint8_t *w = random_weights(t->n, t->k, p.ldw, trits);
    int8_t *q = buffer(matrix_bytes(t->digits * t->m, padded, p.ldq, BT_I8));
    int32_t *sum = buffer((size_t)(t->digits * t->m) * sizeof *sum);
    double *q_step = buffer((size_t)t->m * sizeof *q_step);
    float *q_scale = buffer((size_t)t->m * sizeof *q_scale), *scale = buffer((size_t)scales * sizeof *scale);
    void *bias = buffer((size_t)t->n * type_size(t->bias_type));
    if (t->weights != RANDOM_WEIGHTS)
        fill_weights(t, w, p.ldw, trits);
    fill_codes(t, codes, q, p.ldq, sum);
    fill_normal(q_scale, BT_F32, t->m);
    for (int64_t i = 0; i < t->m; i++)
        q_step[i] = (double)q_scale[i] / 8355711.0;
    fill_normal(scale, BT_F32, scales);
    fill_normal(bias, t->bias_type, t->n);
    p.w = w, p.q = q, p.q_sum = sum, p.q_scale = t->digits == 1 ? q_scale : NULL,
    p.q_step = t->digits == 1 ? NULL : q_step, p.scale = scale, p.bias = t->with_bias ? bias : NULL;
    p.y = buffer(matrix_bytes(t->m, t->n, p.ldy, t->y_type));
    bt_ternary_linear_w2a8_scalar(&p, 0, bt_tiles(t->m, t->n));
    check_scalar(&p, codes, trits);
    compare(t, p, p.y);
    free(trits);
    free(codes);
    release();
}

static void check_group(int64_t m, int64_t n, int64_t k, int64_t group, int fill, int weights) {
    static int turn;
    const int i = turn++;
    case_t t = {.m = m,
                .n = n,
                .k = k,
                .group = group,
                .y_type = i % 3,
                .bias_type = i / 3 % 3,
                .with_bias = i % 4 > 0,
                .gap = i % 2 * 3,
                .fill = fill,
                .weights = weights};
    for (t.digits = 1; t.digits <= 3; t.digits++)
        check_case(&t);
}

void test_ternary_linear_w2a8(void) {
    static const int64_t group_k[] = {64, 128, 192, 256, 320, 512, 640, 768, 1280},
                         groups[] = {4, 20, 64, 128, 192, 256, 512};
    for (int j = 0; j < COUNT_N; j++)
        for (int l = 0; l < COUNT_M; l++) {
            const int64_t n = some_n[j], m = some_m[l];
            for (int i = 0; i < COUNT_K; i++) {
                check_group(m, n, some_k[i], 0, RANDOM, RANDOM_WEIGHTS);
                check_group(m, n, some_k[i], some_k[i], (i + j + l) % FILLS, RANDOM_WEIGHTS);
            }
            for (int i = 0; i < 9; i++)
                for (int g = 0; g < 7; g++)
                    if (group_k[i] % groups[g] == 0 && (n < 65 || m < 65))
                        check_group(m, n, group_k[i], groups[g], (i + g) % FILLS, RANDOM_WEIGHTS);
        }
    check_group(130, 130, 300, 300, RANDOM, RANDOM_WEIGHTS);
    for (int fill = ALL_127; fill < FILLS; fill++)
        for (int weights = ALL_PLUS; weights < WEIGHT_FILLS; weights++)
            for (int64_t m = 1; m < 8; m += 6) /* 7: blocks of four, of two and of one token */
                for (int64_t k = 2048; k <= 65536; k *= 4) {
                    check_group(m, 5, k, k, fill, weights);
                    for (int64_t group = 64; group <= 256; group *= 2)
                        check_group(m, 5, k, group, fill, weights);
                    check_group(m, 5, k, 1024, fill, weights);
                }
}
