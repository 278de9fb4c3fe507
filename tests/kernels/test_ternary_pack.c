/* ternary_pack, ternary_unpack and ternary_check. */
#include "harness.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static void check_golden(const int8_t codes[6], uint8_t first, uint8_t second) {
    set_context("golden row %02x %02x", first, second);
    uint8_t *packed = buffer(2);
    const bt_ternary_pack p = {.codes = codes, .packed = packed, .n = 1, .k = 6, .ldc = 6, .ldw = 2};
    bt_ternary_pack_scalar(&p, 0, 1);
    check(packed[0] == first && packed[1] == second, "ternary_pack");
    int8_t *back = buffer(6);
    const bt_ternary_unpack u = {
        .w = packed, .y = back, .n = 1, .k = 6, .ldw = 2, .ldy = 6, .group = 6, .y_type = BT_I8};
    bt_ternary_unpack_scalar(&u, 0, 1);
    check(memcmp(back, codes, 6) == 0, "ternary_unpack");
    release();
}

static void check_pack(int64_t n, int64_t k, int64_t gap) {
    set_context("ternary_pack n=%ld k=%ld gap=%ld", (long)n, (long)k, (long)gap);
    const int64_t bytes = (k + 3) / 4, ldc = k + gap, ldw = bytes + gap;
    int8_t *codes = buffer(matrix_bytes(n, k, ldc, BT_I8)), *trits = buffer((size_t)(n * k));
    uint8_t *expected = random_weights(n, k, ldw, trits), *packed = buffer(matrix_bytes(n, bytes, ldw, BT_I8));
    for (int64_t r = 0; r < n; r++)
        memcpy(codes + r * ldc, trits + r * k, (size_t)k);
    const bt_ternary_pack p = {.codes = codes, .packed = packed, .n = n, .k = k, .ldc = ldc, .ldw = ldw};
    bt_ternary_pack_scalar(&p, n / 2, n);
    bt_ternary_pack_scalar(&p, 0, n / 2);
    check(memcmp(packed, expected, matrix_bytes(n, bytes, ldw, BT_I8)) == 0, "packed rows");
    release();
}

/* Any byte in place of a trit, and every variant against the scalar kernel. */
static void check_pack_variants(int64_t n, int64_t k, int64_t gap) {
    set_context("ternary_pack of any bytes n=%ld k=%ld gap=%ld", (long)n, (long)k, (long)gap);
    const int64_t bytes = (k + 3) / 4, ldc = k + gap, ldw = bytes + gap;
    const size_t size = matrix_bytes(n, bytes, ldw, BT_I8);
    int8_t *codes = buffer(matrix_bytes(n, k, ldc, BT_I8));
    for (int64_t i = 0; i < n * ldc - gap && k; i++)
        codes[i] = (int8_t)(random_below(8) ? random_below(3) - 1 : random_below(256) - 128);
    bt_ternary_pack p = {.codes = codes, .packed = buffer(size), .n = n, .k = k, .ldc = ldc, .ldw = ldw};
    const uint8_t *expected = p.packed;
    bt_ternary_pack_scalar(&p, 0, n);
    for (const bt_kernel *kernel = NULL; (kernel = next_compared(kernel, BT_OP_ternary_pack));) {
        bt_ternary_pack_fn *run = (bt_ternary_pack_fn *)kernel->run;
        p.packed = buffer(size);
        run(&p, n / 2, n);
        run(&p, 0, n / 2);
        check(memcmp(p.packed, expected, size) == 0, kernel->variant);
    }
    release();
}

static void check_unpack(int64_t n, int64_t k, int64_t gap, int type, int scaled, int64_t group) {
    set_context("ternary_unpack n=%ld k=%ld gap=%ld %s scale=%d group=%ld", (long)n, (long)k, (long)gap,
                type_name(type), scaled, (long)group);
    const int64_t ldw = (k + 3) / 4 + gap, ldy = k + gap, groups = group ? k / group : 1;
    int8_t *trits = buffer((size_t)(n * k));
    uint8_t *w = random_weights(n, k, ldw, trits);
    float *scale = buffer((size_t)(n * groups) * sizeof *scale);
    fill_normal(scale, BT_F32, n * groups);
    void *y = buffer(matrix_bytes(n, k, ldy, type)), *expected = buffer(matrix_bytes(n, k, ldy, type));
    const bt_ternary_unpack p = {.w = w,
                                 .scale = scaled ? scale : NULL,
                                 .y = y,
                                 .n = n,
                                 .k = k,
                                 .ldw = ldw,
                                 .ldy = ldy,
                                 .lds = groups,
                                 .group = group,
                                 .y_type = type};
    bt_ternary_unpack_scalar(&p, 0, n / 2);
    bt_ternary_unpack_scalar(&p, n / 2, n);
    for (int64_t r = 0; r < n; r++)
        for (int64_t c = 0; c < k; c++) {
            if (type == BT_I8)
                ((int8_t *)expected)[r * ldy + c] = trits[r * k + c];
            else
                store_value(expected, type, r * ldy + c,
                            (float)trits[r * k + c] * (scaled ? scale[r * groups + c / group] : 1.0f));
        }
    check(same_values(y, expected, type, matrix_elements(n, k, ldy)), "unpacked rows");
    release();
}

/* Any bytes, code 11 among them, and any scales: every variant against the scalar kernel. group: 0 for one scale. */
static void check_unpack_variants(int64_t n, int64_t k, int64_t gap, int type, int64_t group) {
    static const float special[] = {NAN, INFINITY, -INFINITY, 0.0f, -0.0f, -1.5f, 0x1p-149f, -0x1.234568p-20f, -7e4f};
    set_context("ternary_unpack of any bytes n=%ld k=%ld gap=%ld %s group=%ld", (long)n, (long)k, (long)gap,
                type_name(type), (long)group);
    const int64_t bytes = (k + 3) / 4, ldw = bytes + gap, ldy = k + gap, groups = group ? k / group : 1;
    const size_t size = matrix_bytes(n, k, ldy, type);
    uint8_t *w = buffer(matrix_bytes(n, bytes, ldw, BT_I8));
    float *scale = buffer((size_t)(n * groups) * sizeof *scale);
    for (size_t i = 0; i < matrix_bytes(n, bytes, ldw, BT_I8); i++)
        w[i] = (uint8_t)random_bits();
    for (int64_t i = 0; i < n * groups; i++)
        scale[i] = random_below(2) ? random_normal() : special[random_below(9)];
    bt_ternary_unpack p = {.w = w,
                           .scale = type == BT_I8 ? NULL : scale,
                           .y = buffer(size),
                           .n = n,
                           .k = k,
                           .ldw = ldw,
                           .ldy = ldy,
                           .lds = group ? groups : 0,
                           .group = group ? group : k,
                           .y_type = type};
    const void *expected = p.y;
    bt_ternary_unpack_scalar(&p, 0, n);
    for (const bt_kernel *kernel = NULL; (kernel = next_compared(kernel, BT_OP_ternary_unpack));) {
        bt_ternary_unpack_fn *run = (bt_ternary_unpack_fn *)kernel->run;
        p.y = buffer(size);
        run(&p, n / 2, n);
        run(&p, 0, n / 2);
        check(memcmp(p.y, expected, size) == 0, kernel->variant);
    }
    release();
}

/* The scalar kernel itself with scales that a product with 0 shows, and with code 11. */
static void check_special_scales(void) {
    static const float scale[] = {-2.0f, INFINITY, NAN, 1.0f};
    static const uint8_t w[] = {0xe4, 0xe4, 0xe4, 0xe4};
    const float nan = NAN,
                expected[4][4] = {
                    {-0.0f, -2.0f, 2.0f, -0.0f}, {nan, INFINITY, -INFINITY, nan}, {nan, nan, nan, nan}, {0, 1, -1, 0}};
    for (int type = BT_F32; type <= BT_BF16; type++) {
        set_context("special scales, %s", type_name(type));
        void *y = buffer(16 * type_size(type)), *values = buffer(16 * type_size(type));
        for (int i = 0; i < 16; i++)
            store_value(values, type, i, expected[i / 4][i % 4]);
        const bt_ternary_unpack p = {
            .w = w, .scale = scale, .y = y, .n = 1, .k = 16, .ldw = 4, .ldy = 16, .lds = 4, .group = 4, .y_type = type};
        bt_ternary_unpack_scalar(&p, 0, 1);
        check(same_values(y, values, type, 16), "ternary_unpack");
        release();
    }
}

static void check_unpack_groups(int64_t n, int64_t k, int64_t gap, int type) {
    static const int64_t groups[] = {4, 8, 20, 32, 36, 64, 100};
    check_unpack_variants(n, k, gap, type, k);
    check_unpack_variants(n, k, gap, type, 0);
    for (int i = 0; i < 7; i++)
        if (k > 0 && k % groups[i] == 0)
            check_unpack_variants(n, k, gap, type, groups[i]);
}

/* One fault a row: in the code or in the padding, or none. */
static void check_check(int64_t n, int64_t k, int64_t gap) {
    set_context("ternary_check n=%ld k=%ld gap=%ld", (long)n, (long)k, (long)gap);
    const int64_t bytes = (k + 3) / 4, ldw = bytes + gap;
    int8_t *trits = buffer((size_t)(n * k));
    uint8_t *w = random_weights(n, k, ldw, trits);
    int64_t *column = buffer((size_t)n * sizeof *column), *expected = buffer((size_t)n * sizeof *column);
    for (int64_t r = 0; r < n; r++) {
        expected[r] = -1;
        if (bytes == 0 || r % 3 == 0)
            continue;
        const int64_t c = r % 3 == 1 ? 4 * bytes - 1 : random_below(4 * bytes);
        w[r * ldw + c / 4] |= (uint8_t)(3u << (2 * (c % 4)));
        expected[r] = c;
    }
    const bt_ternary_check p = {.w = w, .column = column, .n = n, .k = k, .ldw = ldw};
    bt_ternary_check_scalar(&p, 0, n);
    check(memcmp(column, expected, (size_t)n * sizeof *column) == 0, "columns");
    release();
}

static void each_size(void (*run)(int64_t n, int64_t k, int64_t gap)) {
    for (int i = 0; i < COUNT_K; i++)
        for (int j = 0; j < COUNT_N; j++)
            for (int gap = 0; gap < 8; gap += 7)
                run(some_n[j], some_k[i], gap);
}

static void check_unpack_types(int64_t n, int64_t k, int64_t gap) {
    for (int type = BT_F32; type <= BT_I8; type++) {
        check_unpack_groups(n, k, gap, type);
        check_unpack(n, k, gap, type, 0, k);
        if (type != BT_I8)
            check_unpack(n, k, gap, type, 1, k % 64 == 0 && gap ? 64 : k);
    }
}

void test_ternary_unpack(void) {
    check_special_scales();
    check_unpack_groups(3, 36, 5, BT_F32);
    check_unpack_groups(3, 1440, 0, BT_F16);
    each_size(check_unpack_types);
}

void test_ternary_check(void) {
    each_size(check_check);
}

void test_ternary_pack(void) {
    static const int8_t first[6] = {1, -1, 0, 1, -1, 0}, second[6] = {0, 1, 1, -1, 0, -1};
    check_golden(first, 0x49, 0x02);
    check_golden(second, 0x94, 0x08);
    each_size(check_pack);
    each_size(check_pack_variants);
    set_context("values other than trits");
    const int8_t odd[4] = {2, -2, 127, 0};
    uint8_t byte = 0;
    const bt_ternary_pack p = {.codes = odd, .packed = &byte, .n = 1, .k = 4, .ldc = 4, .ldw = 1};
    bt_ternary_pack_scalar(&p, 0, 1);
    check(byte == 0x3f, "become code 11");
}
