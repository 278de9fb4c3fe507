/* trit_elementwise: every pair of trits by its value, and all variants against the scalar kernel for any bytes. */
#include "harness.h"

#include <string.h>

static int clamped(int value) {
    return value > 1 ? 1 : value < -1 ? -1 : value;
}

static int expected_of(int function, int a, int b) {
    switch (function) {
    case BT_TRIT_neg:
        return -a;
    case BT_TRIT_abs:
        return a * a;
    case BT_TRIT_add:
        return clamped(a + b);
    case BT_TRIT_sub:
        return clamped(a - b);
    case BT_TRIT_mul:
        return a * b;
    case BT_TRIT_min:
        return a < b ? a : b;
    case BT_TRIT_max:
        return a > b ? a : b;
    case BT_TRIT_consensus:
        return a == b ? a : 0;
    case BT_TRIT_eq:
        return a == b;
    case BT_TRIT_ne:
        return a != b;
    case BT_TRIT_lt:
        return a < b;
    case BT_TRIT_le:
        return a <= b;
    case BT_TRIT_gt:
        return a > b;
    default:
        return a >= b;
    }
}

static int is_of_one(int function) {
    return function == BT_TRIT_neg || function == BT_TRIT_abs;
}

static void check_values(int function, int64_t n, int64_t k, int64_t gap) {
    set_context("function %d n=%ld k=%ld gap=%ld", function, (long)n, (long)k, (long)gap);
    const int64_t bytes = (k + 3) / 4, ld = bytes + gap;
    int8_t *const ta = buffer((size_t)(n * k)), *const tb = buffer((size_t)(n * k));
    const uint8_t *const a = random_weights(n, k, ld, ta), *const b = random_weights(n, k, ld, tb);
    uint8_t *const expected = buffer(matrix_bytes(n, bytes, ld, BT_I8));
    bt_trit_elementwise p = {.a = a,
                             .b = is_of_one(function) ? NULL : b,
                             .y = buffer(matrix_bytes(n, bytes, ld, BT_I8)),
                             .n = n,
                             .k = k,
                             .lda = ld,
                             .ldb = ld,
                             .ldy = ld,
                             .function = function};
    for (int64_t r = 0; r < n && k; r++) {
        memset(expected + r * ld, 0, (size_t)bytes);
        for (int64_t c = 0; c < k; c++) {
            const int y = expected_of(function, ta[r * k + c], tb[r * k + c]);
            expected[r * ld + c / 4] |= (uint8_t)((y == 1 ? 1 : y == -1 ? 2 : 0) << (2 * (c % 4)));
        }
    }
    bt_trit_elementwise_scalar(&p, 0, n * bt_trit_chunks(k));
    check(memcmp(p.y, expected, matrix_bytes(n, bytes, ld, BT_I8)) == 0, "the values");
    release();
}

/* A row of a or of b for all rows, y in the place of a, and no canonical bytes. */
static void check_variants(int function, int64_t n, int64_t k, int64_t gap) {
    set_context("function %d of any bytes n=%ld k=%ld gap=%ld", function, (long)n, (long)k, (long)gap);
    const int64_t bytes = (k + 3) / 4, ld = bytes + gap, tiles = n * bt_trit_chunks(k);
    const size_t size = matrix_bytes(n, bytes, ld, BT_I8);
    uint8_t *const a = buffer(size), *const b = buffer((size_t)bytes);
    for (size_t i = 0; i < size; i++)
        a[i] = (uint8_t)random_bits();
    for (int64_t i = 0; i < bytes; i++)
        b[i] = (uint8_t)random_bits();
    bt_trit_elementwise p = {.a = a,
                             .b = is_of_one(function) ? NULL : b,
                             .y = buffer(size),
                             .n = n,
                             .k = k,
                             .lda = ld,
                             .ldy = ld,
                             .function = function};
    bt_trit_elementwise_scalar(&p, 0, tiles);
    const uint8_t *const expected = p.y;
    for (const bt_kernel *kernel = NULL; (kernel = next_compared(kernel, BT_OP_trit_elementwise));) {
        bt_trit_elementwise_fn *const run = (bt_trit_elementwise_fn *)kernel->run;
        p.a = a, p.y = buffer(size);
        run(&p, tiles / 2, tiles);
        run(&p, 0, tiles / 2);
        check(memcmp(p.y, expected, size) == 0, kernel->variant);
        p.y = buffer(size);
        if (size)
            memcpy(p.y, a, size);
        p.a = p.y;
        run(&p, 0, tiles);
        for (int64_t r = 0; r < n && k; r++)
            check(memcmp(p.y + r * ld, expected + r * ld, (size_t)bytes) == 0, kernel->variant);
    }
    release();
}

void test_trit_elementwise(void) {
    for (int function = 0; function < BT_TRIT_COUNT; function++) {
        for (int i = 0; i < COUNT_K; i++) {
            check_values(function, 3, some_k[i], i % 2 * 5);
            check_variants(function, 3, some_k[i], i % 3);
        }
        check_values(function, 0, 5, 0);
        check_variants(function, 0, 5, 0);
        check_variants(function, 2, 4 * BT_TRIT_CHUNK + 3, 0);
    }
}
