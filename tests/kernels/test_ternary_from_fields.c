/* ternary_from_fields, weight by weight: from the bits at which a field stands. */
#include "harness.h"

#include <string.h>

typedef struct shape_t {
    int64_t n, blocks, runs, run, skipped; /* skipped: bytes behind the runs of a block */
    int by_rows;                           /* 0: parts of a run side by side; 1: four rows; 2: quarters of all rows */
    int high_first;
} shape_t;

static uint8_t stored_byte(int kind, int64_t i) {
    return kind == 0 ? (uint8_t)i : (uint8_t)(random_bits() & 0xaa); /* every byte, or fields 0 and 2 alone */
}

static void check_kernel(const bt_kernel *kernel, bt_ternary_from_fields p, int by_rows, int64_t used, int64_t gap) {
    static const uint8_t code_of[4] = {2, 0, 1, 3};
    const int64_t rows = by_rows ? 4 * p.n : p.n, ld = used + gap, padded = bt_div_up(p.run, 4);
    const size_t size = matrix_bytes(rows, used, ld, BT_I8);
    uint8_t *expected = buffer(size), *flags = buffer((size_t)p.n);
    memset(expected, POISON, size);
    p.w = buffer(size), p.reserved = buffer((size_t)p.n);
    for (int64_t r = 0; r < p.n; r++) {
        flags[r] = 0;
        for (int64_t j = 0; j < p.blocks * p.runs; j++)
            for (int i = 0; i < 4; i++)
                for (int64_t m = 0; m < 4 * padded; m++) {
                    const uint8_t *run = p.data + r * p.ldd + j / p.runs * p.ldblock + j % p.runs * p.run;
                    const int field = m < p.run ? run[m] >> (p.high_first ? 6 - 2 * i : 2 * i) & 3 : 1;
                    uint8_t *byte = &expected[r * p.ldw + j * p.run + i * p.ldpart + m / 4];
                    *byte = (uint8_t)((m % 4 ? *byte : 0) | code_of[field] << (2 * (m % 4)));
                    flags[r] = flags[r] || field == 3;
                }
    }
    bt_ternary_from_fields_fn *run = (bt_ternary_from_fields_fn *)kernel->run;
    run(&p, p.n / 2, p.n);
    run(&p, 0, p.n / 2);
    check(memcmp(p.w, expected, size) == 0, kernel->variant);
    check(memcmp(p.reserved, flags, (size_t)p.n) == 0, "rows with a field 3");
}

static void check_shape(shape_t shape, int kind, int64_t gap) {
    const int64_t block = shape.runs * shape.run + shape.skipped, bytes = shape.blocks * block;
    const int64_t used = shape.by_rows ? bt_div_up(shape.run, 4) : shape.blocks * shape.runs * shape.run;
    const int64_t ld = used + gap, ldd = bytes + gap;
    bt_ternary_from_fields p = {.n = shape.n, .blocks = shape.blocks, .runs = shape.runs, .run = shape.run};
    p.ldd = ldd, p.ldblock = block, p.high_first = shape.high_first;
    p.ldw = shape.by_rows == 1 ? 4 * ld : ld;
    p.ldpart = shape.by_rows == 0 ? shape.run / 4 : shape.by_rows == 1 ? ld : shape.n * ld;
    for (const bt_kernel *kernel = NULL; (kernel = next_usable(kernel, BT_OP_ternary_from_fields));) {
        set_context("ternary_from_fields n=%ld blocks=%ld runs=%ld run=%ld by_rows=%d high_first=%d kind=%d gap=%ld",
                    (long)shape.n, (long)shape.blocks, (long)shape.runs, (long)shape.run, shape.by_rows,
                    shape.high_first, kind, (long)gap);
        uint8_t *data = buffer(matrix_bytes(shape.n, bytes, ldd, BT_I8));
        for (int64_t r = 0; r < shape.n; r++)
            for (int64_t i = 0; i < bytes; i++)
                data[r * ldd + i] = stored_byte(kind, r + 7 * i);
        if (kind == 2 && bytes) /* one field 3, in the last row */
            data[(shape.n - 1) * ldd + random_below(shape.runs * shape.run)] |= 3 << 2 * random_below(4);
        p.data = data;
        check_kernel(kernel, p, shape.by_rows, used, gap);
        release();
    }
}

void test_ternary_from_fields(void) {
    for (int kind = 0; kind < 3; kind++)
        for (int64_t gap = 0; gap < 8; gap += 7)
            for (int high_first = 0; high_first < 2; high_first++) {
                for (int64_t blocks = 0; blocks < 12; blocks += 1 + blocks / 6) {
                    check_shape((shape_t){3, blocks, 1, 32, 0, 0, high_first}, kind, gap);
                    check_shape((shape_t){3, blocks, 1, 16, 0, 0, high_first}, kind, gap);
                    check_shape((shape_t){2, blocks, 2, 32, 2, 0, high_first}, kind, gap);
                    check_shape((shape_t){2, blocks, 3, 8, 1, 0, high_first}, kind, gap);
                }
                for (int64_t run = 1; run < 140; run += run < 70 ? 1 : 23) {
                    check_shape((shape_t){3, 1, 1, run, 0, 1, high_first}, kind, gap);
                    check_shape((shape_t){3, 1, 1, run, 0, 2, high_first}, kind, gap);
                }
            }
    check_shape((shape_t){256, 2, 1, 32, 0, 0, 1}, 0, 0); /* every byte in every place */
}
