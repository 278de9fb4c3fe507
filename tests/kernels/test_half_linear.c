/* half_linear: the scalar kernel against fp64 sums, the others against its bits. */
#include "harness.h"

#include <math.h>

typedef struct case_t {
    int64_t m, n, k, gap;
    int w_type, bias_type, y_type, with_bias;
} case_t;

static void check_formula(const bt_half_linear *p) {
    int agrees = 1;
    for (int64_t i = 0; i < p->m; i++)
        for (int64_t r = 0; r < p->n; r++) {
            double sum = p->bias ? value_at(p->bias, p->bias_type, r) : 0.0, size = fabs(sum);
            for (int64_t c = 0; c < p->k; c++) {
                const double product = (double)p->x[i * p->ldx + c] * value_at(p->w, p->w_type, r * p->ldw + c);
                sum += product;
                size += fabs(product);
            }
            const double cast = p->y_type == BT_F32 ? 0.0 : p->y_type == BT_F16 ? 5e-4 : 4e-3;
            const double error = fabs(value_at(p->y, p->y_type, i * p->ldy + r) - sum);
            agrees = agrees && error <= 1e-6 * size + cast * fabs(sum) + 1e-7;
        }
    check(agrees, "scalar against the sum");
}

static void check_case(const case_t *t) {
    const int64_t ldx = t->k + t->gap, ldw = t->k + t->gap, ldy = t->n + t->gap;
    set_context("half_linear m=%ld n=%ld k=%ld gap=%ld w=%s bias=%s y=%s", (long)t->m, (long)t->n, (long)t->k,
                (long)t->gap, type_name(t->w_type), t->with_bias ? type_name(t->bias_type) : "none",
                type_name(t->y_type));
    const size_t size = matrix_bytes(t->m, t->n, ldy, t->y_type);
    float *const x = buffer(matrix_bytes(t->m, t->k, ldx, BT_F32));
    void *const w = buffer(matrix_bytes(t->n, t->k, ldw, t->w_type));
    void *const bias = buffer((size_t)t->n * type_size(t->bias_type));
    fill_normal(x, BT_F32, matrix_elements(t->m, t->k, ldx));
    fill_normal(w, t->w_type, matrix_elements(t->n, t->k, ldw));
    fill_normal(bias, t->bias_type, t->n);
    bt_half_linear p = {.x = x,
                        .w = w,
                        .bias = t->with_bias ? bias : NULL,
                        .y = buffer(size),
                        .m = t->m,
                        .n = t->n,
                        .k = t->k,
                        .ldx = ldx,
                        .ldw = ldw,
                        .ldy = ldy,
                        .w_type = t->w_type,
                        .bias_type = t->bias_type,
                        .y_type = t->y_type};
    const int64_t tiles = bt_tiles(t->m, t->n);
    bt_half_linear_scalar(&p, 0, tiles);
    check_formula(&p);
    const void *const expected = p.y;
    for (const bt_kernel *kernel = NULL; (kernel = next_compared(kernel, BT_OP_half_linear));) {
        bt_half_linear_fn *run = (bt_half_linear_fn *)kernel->run;
        p.y = buffer(size);
        run(&p, tiles / 2, tiles);
        run(&p, 0, tiles / 2);
        check_matrix(p.y, expected, t->m, t->n, ldy, t->y_type, kernel->variant);
    }
    release();
}

void test_half_linear(void) {
    static const int64_t sizes_k[] = {0, 1, 31, 32, 33, 64, 255, 576, 1000};
    int turn = 0;
    for (int i = 0; i < 9; i++)
        for (int l = 0; l < COUNT_M; l++)
            for (int j = 0; j < 2; j++, turn++) {
                const case_t t = {.m = some_m[l],
                                  .n = j ? 65 : some_n[turn % COUNT_N],
                                  .k = sizes_k[i],
                                  .gap = turn % 3 ? 0 : 3,
                                  .w_type = turn / 3 % 2 ? BT_F16 : BT_BF16,
                                  .bias_type = turn / 2 % 3,
                                  .y_type = turn % 3,
                                  .with_bias = turn % 4 > 0};
                check_case(&t);
            }
}
