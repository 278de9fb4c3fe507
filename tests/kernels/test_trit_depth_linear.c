/* trit_depth_linear: the scalar kernel against exact sums and the stated epilogue, the others against its bits. */
#include "harness.h"

#include "../../csrc/kernels/act_quantize.h"

#include <stdlib.h>
#include <string.h>

enum { RANDOM_WEIGHTS, ALL_PLUS, ALL_MINUS, WEIGHT_FILLS };

typedef struct case_t {
    int64_t m, n, k, group; /* group 0: one scale for all */
    int y_type, bias_type, with_bias, gap, fill, weights, digits, depth;
} case_t;

/* Random planes, or all trits 1 or -1; `sums` are their integers. */
static uint8_t *fill_planes(const case_t *t, int64_t ldw, int64_t plane, int *sums) {
    uint8_t *const w = buffer(t->n ? (size_t)((t->depth - 1) * plane + (t->n - 1) * ldw + (t->k + 3) / 4) : 0);
    memset(sums, 0, (size_t)(t->n * t->k) * sizeof *sums);
    for (int i = 0, power = 1; i < t->depth; i++, power *= 3)
        for (int64_t r = 0; r < t->n; r++)
            for (int64_t c = 0; c < t->k; c++) {
                const int trit = t->weights == ALL_PLUS ? 1 : t->weights == ALL_MINUS ? -1 : (int)random_below(3) - 1;
                uint8_t *const byte = w + i * plane + r * ldw + c / 4;
                *byte = (uint8_t)((c % 4 ? *byte : 0) | (trit < 0 ? 2 : trit) << (2 * (c % 4)));
                sums[r * t->k + c] += power * trit;
            }
    return w;
}

static float expected_sum(const bt_trit_depth_linear *p, const int *sums, int64_t i, int64_t r) {
    float sum = 0.0f;
    double wide_sum = 0.0;
    for (int64_t begin = 0; begin < p->k; begin += p->group) {
        const float scale = p->scale[r * p->lds + begin / p->group];
        int64_t acc = 0;
        for (int d = p->digits - 1; d >= 0; d--) {
            const int8_t *const q = p->q + (p->digits * i + d) * p->ldq;
            int64_t dot = 0;
            for (int64_t c = begin; c < begin + p->group; c++)
                dot += (int64_t)sums[r * p->k + c] * q[c / 256 * 256 + c % 4 * 64 + c % 256 / 4];
            acc = 256 * acc + dot;
        }
        if (p->digits == 1) {
            const float factor = p->q_scale[i] * scale, product = (float)acc * factor;
            sum += product;
        } else {
            const double scaled = (double)acc * p->q_step[i], product = scaled * (double)scale;
            wide_sum += product;
        }
    }
    return p->digits == 1 ? sum : (float)wide_sum;
}

static void check_scalar(const bt_trit_depth_linear *p, const int *sums) {
    int agrees = 1;
    for (int64_t i = 0; i < p->m; i++)
        for (int64_t r = 0; r < p->n; r++) {
            const float sum = expected_sum(p, sums, i, r);
            agrees = agrees && is_finished(p->y, p->y_type, i * p->ldy + r, sum, p->bias, p->bias_type, r);
        }
    check(agrees, "scalar against exact sums");
}

static void compare(const case_t *t, bt_trit_depth_linear p) {
    const int64_t tiles = bt_tiles(t->m, t->n);
    const void *const expected = p.y;
    for (const bt_kernel *kernel = NULL; (kernel = next_compared(kernel, BT_OP_trit_depth_linear));) {
        bt_trit_depth_linear_fn *run = (bt_trit_depth_linear_fn *)kernel->run;
        p.y = buffer(matrix_bytes(t->m, t->n, p.ldy, t->y_type));
        run(&p, tiles / 2, tiles);
        run(&p, 0, tiles / 2);
        check_matrix(p.y, expected, t->m, t->n, p.ldy, t->y_type, kernel->variant);
    }
}

static void check_case(const case_t *t) {
    set_context("trit_depth_linear depth=%d m=%ld n=%ld k=%ld group=%ld y=%s bias=%s gap=%d fill=%d weights=%d "
                "digits=%d",
                t->depth, (long)t->m, (long)t->n, (long)t->k, (long)t->group, type_name(t->y_type),
                t->with_bias ? type_name(t->bias_type) : "none", t->gap, t->fill, t->weights, t->digits);
    const int64_t padded = (t->k + 255) / 256 * 256, ldq = padded + 256 * t->gap, q_rows = t->digits * t->m;
    const int64_t groups = t->group && t->k ? t->k / t->group : 1, ldw = (t->k + 3) / 4 + t->gap;
    int *const sums = malloc((size_t)(t->n * t->k) * sizeof *sums + 1);
    int8_t *const q = buffer(matrix_bytes(q_rows, padded, ldq, BT_I8));
    int32_t *const sum = buffer((size_t)q_rows * sizeof *sum);
    float *const q_scale = buffer((size_t)t->m * sizeof *q_scale);
    double *const q_step = buffer((size_t)t->m * sizeof *q_step);
    const int64_t scales = t->group ? t->n * groups : 1;
    float *const scale = buffer((size_t)scales * sizeof *scale);
    void *const bias = buffer((size_t)t->n * type_size(t->bias_type));
    const int64_t plane = t->n * ldw + t->gap;
    const uint8_t *const w = fill_planes(t, ldw, plane, sums);
    for (int64_t i = 0; i < q_rows; i++) {
        memset(q + i * ldq, 0, (size_t)padded);
        sum[i] = 0;
        for (int64_t c = 0; c < t->k; c++)
            sum[i] += q[i * ldq + c / 256 * 256 + c % 4 * 64 + c % 256 / 4] = byte_of(t->fill, c);
    }
    fill_normal(q_scale, BT_F32, t->m);
    for (int64_t i = 0; i < t->m; i++)
        q_step[i] = (double)q_scale[i] / 32639.0;
    fill_normal(scale, BT_F32, scales);
    fill_normal(bias, t->bias_type, t->n);
    bt_trit_depth_linear p = {.q = q,
                              .q_scale = t->digits == 1 ? q_scale : NULL,
                              .q_step = t->digits == 1 ? NULL : q_step,
                              .q_sum = sum,
                              .w = w,
                              .scale = scale,
                              .bias = t->with_bias ? bias : NULL,
                              .y = buffer(matrix_bytes(t->m, t->n, t->n + t->gap, t->y_type)),
                              .m = t->m,
                              .n = t->n,
                              .k = t->k,
                              .ldq = ldq,
                              .ldw = ldw,
                              .plane = plane,
                              .ldy = t->n + t->gap,
                              .lds = t->group ? groups : 0,
                              .group = t->group ? t->group : t->k,
                              .y_type = t->y_type,
                              .bias_type = t->bias_type,
                              .digits = t->digits,
                              .depth = t->depth,
                              .memory = buffer((size_t)bt_trit_depth_memory(t->k))};
    bt_trit_depth_linear_scalar(&p, 0, bt_tiles(t->m, t->n));
    check_scalar(&p, sums);
    compare(t, p);
    free(sums);
    release();
}

void test_trit_depth_linear(void) {
    static const int64_t sizes_k[] = {0, 1, 5, 64, 65, 192, 256, 257, 576, 1000},
                         groups[] = {4, 64, 128, 192, 256, 512};
    int turn = 0;
    for (int i = 0; i < 10; i++)
        for (int l = 0; l < COUNT_M; l++)
            for (int digits = 1; digits <= 3; digits++, turn++) {
                case_t t = {.m = some_m[l],
                            .n = some_n[turn % COUNT_N],
                            .k = sizes_k[i],
                            .group = turn % 2 ? sizes_k[i] : 0,
                            .y_type = turn / 2 % 3,
                            .bias_type = turn / 3 % 3,
                            .with_bias = turn % 4 > 0,
                            .gap = turn % 5 ? 0 : 3,
                            .fill = turn % FILLS,
                            .digits = digits,
                            .depth = 1 + turn % BT_MAX_DEPTH};
                check_case(&t);
            }
    for (int g = 0; g < 6; g++)
        for (int l = 1; l < COUNT_M; l++)
            for (int times = 1; times < 6; times += 2, turn++) {
                const case_t t = {.m = some_m[l],
                                  .n = 1 + turn % 6,
                                  .k = groups[g] * times,
                                  .group = groups[g],
                                  .fill = turn % FILLS,
                                  .digits = 1 + turn % 3,
                                  .depth = 2 + turn % 4};
                check_case(&t);
            }
    for (int fill = 0; fill < FILLS; fill++) /* sums at their limits */
        for (int weights = 0; weights < WEIGHT_FILLS; weights++) {
            const case_t t = {.m = 3,
                              .n = 5,
                              .k = fill ? 16384 : BT_I8_MAX_K,
                              .group = weights ? 16384
                                       : fill  ? 16384
                                               : BT_I8_MAX_K,
                              .fill = fill,
                              .weights = weights,
                              .digits = 1 + fill % 2,
                              .depth = BT_MAX_DEPTH};
            check_case(&t);
        }
}
