/* hadamard: the scalar kernel against the sum with signs in fp64, the others against its bits. */
#include "harness.h"

#include <math.h>

static double expected_at(const bt_hadamard *p, int64_t row, int64_t column) {
    const int64_t block = column & -p->n, r = column - block;
    double sum = 0.0;
    for (int64_t c = 0; c < p->n; c++) {
        const double x = value_at(p->x, p->type, row * p->ldx + block + c);
        sum += (__builtin_parityll((unsigned long long)(r & c)) ? -x : x) * (p->before ? p->before[block + c] : 1);
    }
    return sum / sqrt((double)p->n) * (p->after ? p->after[column] : 1);
}

/* fp32 sums of log2(n) steps, and one rounding to the type; values are about 1. */
static void check_formula(const bt_hadamard *p) {
    const double tolerance = p->type == BT_F32 ? 4e-6 : p->type == BT_F16 ? 4e-3 : 3e-2;
    double worst = 0.0;
    for (int64_t i = 0; i < p->m; i++)
        for (int64_t c = 0; c < p->k; c++)
            worst = fmax(worst, fabs(value_at(p->y, p->type, i * p->ldy + c) - expected_at(p, i, c)));
    check(worst <= tolerance, "scalar against the sum");
}

static int8_t *random_signs(int64_t k) {
    int8_t *sign = buffer((size_t)k);
    for (int64_t c = 0; c < k; c++)
        sign[c] = random_below(2) ? 1 : -1;
    return sign;
}

static void check_hadamard(int64_t m, int64_t blocks, int64_t n, int64_t gap, int type, int signs) {
    const int64_t k = blocks * n, ld = k + gap;
    set_context("hadamard m=%ld k=%ld n=%ld gap=%ld %s signs=%d", (long)m, (long)k, (long)n, (long)gap, type_name(type),
                signs);
    const size_t size = matrix_bytes(m, k, ld, type);
    void *x = buffer(size);
    fill_normal(x, type, matrix_elements(m, k, ld));
    int8_t *before = signs & 1 ? random_signs(k) : NULL, *after = signs & 2 ? random_signs(k) : NULL;
    if (signs == 4) {
        before = random_signs(k);
        before[k / 2] = 2;
        after = random_signs(k);
        after[0] = 0;
    }
    bt_hadamard p = {.x = x,
                     .before = before,
                     .after = after,
                     .y = buffer(size),
                     .m = m,
                     .k = k,
                     .n = n,
                     .ldx = ld,
                     .ldy = ld,
                     .type = type};
    const int64_t tiles = bt_hadamard_tiles(&p);
    bt_hadamard_scalar(&p, 0, tiles);
    if (signs < 4 && n <= 256)
        check_formula(&p);
    if (signs == 4)
        check(isnan(value_at(p.y, type, 0)) && isnan(value_at(p.y, type, k / 2)), "no sign gives NaN");
    const void *expected = p.y;
    for (const bt_kernel *kernel = NULL; (kernel = next_compared(kernel, BT_OP_hadamard));) {
        bt_hadamard_fn *run = (bt_hadamard_fn *)kernel->run;
        p.y = buffer(size);
        run(&p, tiles / 2, tiles);
        run(&p, 0, tiles / 2);
        check_matrix(p.y, expected, m, k, ld, type, kernel->variant);
    }
    release();
}

void test_hadamard(void) {
    for (int type = BT_F32; type <= BT_BF16; type++) {
        for (int64_t n = 1; n <= 1024; n *= 2)
            for (int signs = 0; signs <= 4; signs++) {
                check_hadamard(2, 3, n, 0, type, signs);
                check_hadamard(3, 1, n, 5, type, signs);
            }
        check_hadamard(1, 1, 4096, 0, type, 3);
        check_hadamard(1, 1, BT_HADAMARD_MAX, 1, type, 1);
        check_hadamard(0, 2, 64, 0, type, 0);
        check_hadamard(2, 0, 64, 0, type, 0);
    }
}
