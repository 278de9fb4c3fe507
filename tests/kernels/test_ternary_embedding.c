/* ternary_embedding: the scalar kernel against the formula, the others against it. */
#include "harness.h"

#include <math.h>

/* Index 0, the last one, and two that are none. */
static int64_t *some_indices(int64_t m, int64_t n) {
    int64_t *index = buffer((size_t)m * sizeof *index);
    for (int64_t i = 0; i < m; i++)
        index[i] = i == 0 ? n - 1 : i == 2 ? -1 : i == 3 ? n : n ? random_below(n) : 0;
    return index;
}

static void store_expected(const bt_ternary_embedding *p, const int8_t *trits, void *y) {
    for (int64_t i = 0; i < p->m; i++)
        for (int64_t c = 0; c < p->k; c++) {
            const int64_t index = p->index[i];
            const int known = index >= 0 && index < p->n;
            double sum = known ? 0.0 : (double)NAN;
            for (int64_t row = index; known && row < p->depth * p->n; row += p->n)
                sum += (double)((float)trits[row * p->k + c] * p->scale[row * p->lds + c / p->group]);
            store_value(y, p->y_type, i * p->ldy + c, (float)sum);
        }
}

static void check_embedding(int64_t m, int64_t n, int64_t k, int depth, int64_t gap, int type, int64_t group) {
    set_context("ternary_embedding m=%ld n=%ld k=%ld depth=%d gap=%ld %s group=%ld", (long)m, (long)n, (long)k, depth,
                (long)gap, type_name(type), (long)group);
    const int64_t rows = depth * n, ldw = (k + 3) / 4 + gap, ldy = k + gap, groups = group ? k / group : 1;
    int8_t *trits = buffer((size_t)(rows * k));
    const uint8_t *w = random_weights(rows, k, ldw, trits);
    float *scale = buffer((size_t)(rows * groups) * sizeof *scale);
    for (int64_t i = 0; i < rows * groups; i++)
        scale[i] = fabsf(random_normal()) + 0.01f; /* the sign of a zero is not part of the formula above */
    const size_t size = matrix_bytes(m, k, ldy, type);
    void *expected = buffer(size);
    bt_ternary_embedding p = {.index = some_indices(m, n),
                              .w = w,
                              .scale = scale,
                              .m = m,
                              .n = n,
                              .k = k,
                              .ldw = ldw,
                              .ldy = ldy,
                              .lds = group ? groups : 0,
                              .group = group ? group : k,
                              .depth = depth,
                              .y_type = type};
    store_expected(&p, trits, expected);
    for (const bt_kernel *kernel = NULL; (kernel = next_usable(kernel, BT_OP_ternary_embedding));) {
        bt_ternary_embedding_fn *run = (bt_ternary_embedding_fn *)kernel->run;
        p.y = buffer(size);
        run(&p, m / 2, m);
        run(&p, 0, m / 2);
        check_matrix(p.y, expected, m, k, ldy, type, kernel->variant);
    }
    release();
}

void test_ternary_embedding(void) {
    static const int64_t groups[] = {0, 4, 20, 64, 320};
    for (int type = BT_F32; type <= BT_BF16; type++)
        for (int depth = 1; depth <= 3; depth++) {
            for (int i = 0; i < COUNT_K; i++)
                for (int gap = 0; gap < 8; gap += 7) {
                    check_embedding(6, 5, some_k[i], depth, gap, type, some_k[i]);
                    check_embedding(3, 0, some_k[i], depth, gap, type, some_k[i]);
                }
            for (int i = 0; i < 5; i++)
                check_embedding(9, 4, 1600, depth, 3, type, groups[i]);
        }
}
