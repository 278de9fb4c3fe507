/* block_linear: the scalar kernel against fp64 sums of what block_unpack gives, the others against its bits. */
#include "harness.h"

#include <math.h>

static void check_formula(const bt_block_linear *p) {
    float *const w = buffer((size_t)(p->n * p->k) * sizeof *w);
    const bt_block_unpack unpack = {
        .w = p->w, .y = w, .n = p->n, .k = p->k, .ldw = p->ldw, .ldy = p->k, .block = p->block, .y_type = BT_F32};
    bt_block_unpack_scalar(&unpack, 0, p->n);
    double worst = 0.0;
    for (int64_t i = 0; i < p->m; i++)
        for (int64_t r = 0; r < p->n; r++) {
            double sum = 0.0, size = 0.0;
            for (int64_t c = 0; c < p->k; c++) {
                const double product = (double)p->x[i * p->ldx + c] * w[r * p->k + c];
                sum += product;
                size += fabs(product);
            }
            if (isfinite(size))
                worst = fmax(worst, fabs(p->y[i * p->ldy + r] - sum) - 4e-6 * size);
        }
    check(worst <= 0.0, "scalar against the sum");
}

static void check_block_linear(int block, int64_t m, int64_t n, int64_t blocks, int64_t gap) {
    const int64_t k = blocks * bt_block_weights(block), row = bt_block_row_bytes(block, k);
    const int64_t ldx = k + gap, ldw = row + gap, ldy = n + gap;
    set_context("block_linear %s m=%ld n=%ld k=%ld gap=%ld", bt_block_name(block), (long)m, (long)n, (long)k,
                (long)gap);
    const size_t bytes = n ? (size_t)((n - 1) * ldw + row) : 0, size = matrix_bytes(m, n, ldy, BT_F32);
    float *const x = buffer(matrix_bytes(m, k, ldx, BT_F32));
    fill_normal(x, BT_F32, matrix_elements(m, k, ldx));
    uint8_t *const w = buffer(bytes);
    for (size_t i = 0; i < bytes; i++)
        w[i] = (uint8_t)(random_bits() & 0x3f); /* small halves, none of which is infinite */
    bt_block_linear p = {
        .x = x, .w = w, .y = buffer(size), .m = m, .n = n, .k = k, .ldx = ldx, .ldw = ldw, .ldy = ldy, .block = block};
    const int64_t tiles = bt_tiles(m, n);
    bt_block_linear_scalar(&p, 0, tiles);
    check_formula(&p);
    const void *const expected = p.y;
    for (const bt_kernel *kernel = NULL; (kernel = next_compared(kernel, BT_OP_block_linear));) {
        bt_block_linear_fn *run = (bt_block_linear_fn *)kernel->run;
        p.y = buffer(size);
        run(&p, tiles / 2, tiles);
        run(&p, 0, tiles / 2);
        check_matrix(p.y, expected, m, n, ldy, BT_F32, kernel->variant);
    }
    release();
}

void test_block_linear(void) {
    for (int block = 0; block < BT_BLOCK_COUNT; block++) {
        check_block_linear(block, 1, 3, 5, 0);
        check_block_linear(block, 3, 65, 2, 0);
        check_block_linear(block, 66, 2, 1, 3);
        check_block_linear(block, 1, 2, 9, 7);
        check_block_linear(block, 0, 2, 1, 0);
        check_block_linear(block, 2, 0, 1, 0);
        check_block_linear(block, 2, 2, 0, 0);
    }
}
