/* trit_reduce: counts of the values, and all variants against the scalar kernel for any bytes. */
#include "harness.h"

#include <string.h>

static void check_values(int64_t n, int64_t k, int64_t gap, int product) {
    set_context("trit_reduce n=%ld k=%ld gap=%ld product=%d", (long)n, (long)k, (long)gap, product);
    const int64_t ld = (k + 3) / 4 + gap, tiles = n * bt_reduce_chunks(k);
    int8_t *const ta = buffer((size_t)(n * k)), *const tb = buffer((size_t)(n * k));
    const bt_trit_reduce p = {.a = random_weights(n, k, ld, ta),
                              .b = product ? random_weights(n, k, ld, tb) : NULL,
                              .counts = buffer((size_t)tiles * 16),
                              .n = n,
                              .k = k,
                              .lda = ld,
                              .ldb = ld};
    bt_trit_reduce_scalar(&p, tiles / 2, tiles);
    bt_trit_reduce_scalar(&p, 0, tiles / 2);
    for (int64_t r = 0; r < n; r++) {
        int64_t plus = 0, minus = 0;
        for (int64_t c = 0; c < k; c++) {
            const int v = ta[r * k + c] * (product ? tb[r * k + c] : 1);
            plus += v == 1, minus += v == -1;
        }
        check(p.counts[2 * r] == plus && p.counts[2 * r + 1] == minus, "the counts");
    }
    release();
}

/* Bytes of ones, where every count is as large as it may be, or any. */
static void check_variants(int64_t n, int64_t k, int64_t gap, int product, int full) {
    set_context("trit_reduce of any bytes n=%ld k=%ld gap=%ld product=%d full=%d", (long)n, (long)k, (long)gap, product,
                full);
    const int64_t bytes = (k + 3) / 4, ld = bytes + gap, tiles = n * bt_reduce_chunks(k);
    const size_t size = matrix_bytes(n, bytes, ld, BT_I8);
    uint8_t *const a = buffer(size), *const b = buffer((size_t)bytes);
    for (size_t i = 0; i < size; i++)
        a[i] = full ? 0xff : (uint8_t)random_bits();
    for (int64_t i = 0; i < bytes; i++)
        b[i] = full ? 0xff : (uint8_t)random_bits();
    bt_trit_reduce p = {
        .a = a, .b = product ? b : NULL, .counts = buffer((size_t)tiles * 16), .n = n, .k = k, .lda = ld};
    bt_trit_reduce_scalar(&p, 0, tiles);
    const int64_t *const expected = p.counts;
    for (const bt_kernel *kernel = NULL; (kernel = next_compared(kernel, BT_OP_trit_reduce));) {
        p.counts = buffer((size_t)tiles * 16);
        ((bt_trit_reduce_fn *)kernel->run)(&p, tiles / 2, tiles);
        ((bt_trit_reduce_fn *)kernel->run)(&p, 0, tiles / 2);
        check(memcmp(p.counts, expected, (size_t)tiles * 16) == 0, kernel->variant);
    }
    release();
}

void test_trit_reduce(void) {
    for (int product = 0; product < 2; product++) {
        for (int i = 0; i < COUNT_K; i++)
            for (int gap = 0; gap < 8; gap += 7) {
                check_values(5, some_k[i], gap, product);
                check_variants(3, some_k[i], gap, product, i % 2);
            }
        check_values(0, 5, 0, product);
        check_variants(2, 4 * BT_REDUCE_CHUNK + 3, 0, product, 0);
        check_variants(1, 32 * 1024, 0, product, 1);
    }
}
