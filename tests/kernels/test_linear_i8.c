/* linear_i8: the scalar kernel against exact sums and the stated epilogue, the others against its bits. */
#include "harness.h"

typedef struct case_t {
    int64_t m, n, k;
    int y_type, bias_type, with_bias, gap, fill, digits;
} case_t;

static float expected_product(const bt_linear_i8 *p, int64_t i, int64_t r) {
    int64_t acc = 0;
    for (int d = p->digits - 1; d >= 0; d--) {
        int64_t sum = 0;
        for (int64_t c = 0; c < p->k; c++)
            sum += (int64_t)p->q[(p->digits * i + d) * p->ldq + c] * p->w[r * p->ldw + c];
        acc = 256 * acc + sum;
    }
    if (p->digits == 1) {
        const float factor = p->q_scale[i] * p->scale[r], product = (float)acc * factor;
        return product;
    }
    const double scaled = (double)acc * p->q_step[i];
    return (float)(scaled * (double)p->scale[r]);
}

static void check_scalar(const bt_linear_i8 *p) {
    int agrees = 1;
    for (int64_t i = 0; i < p->m; i++)
        for (int64_t r = 0; r < p->n; r++) {
            const float sum = expected_product(p, i, r) + 0.0f;
            agrees = agrees && is_finished(p->y, p->y_type, i * p->ldy + r, sum, p->bias, p->bias_type, r);
        }
    check(agrees, "scalar against exact sums");
}

static void check_case(const case_t *t) {
    set_context("linear_i8 m=%ld n=%ld k=%ld y=%s bias=%s gap=%d fill=%d digits=%d", (long)t->m, (long)t->n, (long)t->k,
                type_name(t->y_type), t->with_bias ? type_name(t->bias_type) : "none", t->gap, t->fill, t->digits);
    const int64_t ld = t->k + t->gap, ldy = t->n + t->gap, q_rows = t->digits * t->m;
    const size_t size = matrix_bytes(t->m, t->n, ldy, t->y_type);
    int8_t *const q = buffer(matrix_bytes(q_rows, t->k, ld, BT_I8));
    int8_t *const w = buffer(matrix_bytes(t->n, t->k, ld, BT_I8));
    int32_t *const sum = buffer((size_t)q_rows * sizeof *sum);
    float *const q_scale = buffer((size_t)t->m * sizeof *q_scale), *const scale = buffer((size_t)t->n * sizeof *scale);
    double *const q_step = buffer((size_t)t->m * sizeof *q_step);
    void *const bias = buffer((size_t)t->n * type_size(t->bias_type));
    for (int64_t i = 0; i < q_rows; i++) {
        sum[i] = 0;
        for (int64_t c = 0; c < t->k; c++)
            sum[i] += q[i * ld + c] = byte_of(t->fill, c);
    }
    for (int64_t r = 0; r < t->n; r++)
        for (int64_t c = 0; c < t->k; c++)
            w[r * ld + c] = byte_of((t->fill + (int)r) % FILLS, c);
    fill_normal(q_scale, BT_F32, t->m);
    for (int64_t i = 0; i < t->m; i++)
        q_step[i] = (double)q_scale[i] / 32639.0;
    fill_normal(scale, BT_F32, t->n);
    fill_normal(bias, t->bias_type, t->n);
    bt_linear_i8 p = {.q = q,
                      .q_scale = t->digits == 1 ? q_scale : NULL,
                      .q_step = t->digits == 1 ? NULL : q_step,
                      .q_sum = sum,
                      .w = w,
                      .scale = scale,
                      .bias = t->with_bias ? bias : NULL,
                      .y = buffer(size),
                      .m = t->m,
                      .n = t->n,
                      .k = t->k,
                      .ldq = ld,
                      .ldw = ld,
                      .ldy = ldy,
                      .y_type = t->y_type,
                      .bias_type = t->bias_type,
                      .digits = t->digits};
    const int64_t tiles = bt_tiles(t->m, t->n);
    bt_linear_i8_scalar(&p, 0, tiles);
    check_scalar(&p);
    const void *const expected = p.y;
    for (const bt_kernel *kernel = NULL; (kernel = next_compared(kernel, BT_OP_linear_i8));) {
        bt_linear_i8_fn *run = (bt_linear_i8_fn *)kernel->run;
        p.y = buffer(size);
        run(&p, tiles / 2, tiles);
        run(&p, 0, tiles / 2);
        check_matrix(p.y, expected, t->m, t->n, ldy, t->y_type, kernel->variant);
    }
    release();
}

void test_linear_i8(void) {
    int turn = 0;
    for (int i = 0; i < COUNT_K; i++)
        for (int l = 0; l < COUNT_M; l++)
            for (int digits = 1; digits <= 3; digits++, turn++) {
                const case_t t = {.m = some_m[l],
                                  .n = some_n[turn % COUNT_N],
                                  .k = some_k[i],
                                  .y_type = turn / 2 % 3,
                                  .bias_type = turn / 3 % 3,
                                  .with_bias = turn % 4 > 0,
                                  .gap = turn % 5 ? 0 : 3,
                                  .fill = turn % FILLS,
                                  .digits = digits};
                check_case(&t);
            }
    for (int fill = 0; fill < FILLS; fill++) { /* the longest rows: sums at their limits */
        const case_t t = {.m = 2, .n = 5, .k = BT_I8_MAX_K, .fill = fill, .digits = 1 + fill % 2};
        check_case(&t);
    }
}
