/* bitplane_matmul: the sums of the values, for every variant; full rows count as high as they can. */
#include "harness.h"

#include <string.h>

static const uint8_t *planes_of(const uint8_t *w, int64_t n, int64_t k, int64_t ldp) {
    const bt_bitplane_pack p = {.w = w,
                                .planes = buffer(matrix_bytes(n, bt_div_up(k, 512) * BT_PLANE_BLOCK_BYTES, ldp, BT_I8)),
                                .n = n,
                                .k = k,
                                .ldw = (k + 3) / 4,
                                .ldp = ldp};
    bt_bitplane_pack_scalar(&p, 0, n);
    return p.planes;
}

static void check_product(int64_t m, int64_t n, int64_t k, int64_t gap, int full) {
    set_context("bitplane_matmul m=%ld n=%ld k=%ld gap=%ld full=%d", (long)m, (long)n, (long)k, (long)gap, full);
    const int64_t blocks = bt_div_up(k, BT_PLANE_TRITS), ld = blocks * BT_PLANE_BLOCK_BYTES + gap, ldy = n + gap;
    int8_t *const ta = buffer((size_t)(m * k)), *const tb = buffer((size_t)(n * k));
    uint8_t *const a = random_weights(m, k, (k + 3) / 4, ta), *const b = random_weights(n, k, (k + 3) / 4, tb);
    if (full) {
        memset(a, 0x55, (size_t)(m * ((k + 3) / 4))), memset(ta, 1, (size_t)(m * k));
        memset(b, 0xaa, (size_t)(n * ((k + 3) / 4))), memset(tb, -1, (size_t)(n * k));
    }
    bt_bitplane_matmul p = {.a = planes_of(a, m, k, ld),
                            .b = planes_of(b, n, k, ld),
                            .m = m,
                            .n = n,
                            .blocks = blocks,
                            .lda = ld,
                            .ldb = ld,
                            .ldy = ldy};
    const size_t size = matrix_bytes(m, n, ldy, BT_F32);
    int32_t *const expected = buffer(size);
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) {
            expected[i * ldy + j] = 0;
            for (int64_t c = 0; c < k; c++)
                expected[i * ldy + j] += ta[i * k + c] * tb[j * k + c];
        }
    const int64_t tiles = bt_tiles(m, n);
    for (const bt_kernel *kernel = NULL; (kernel = next_usable(kernel, BT_OP_bitplane_matmul));) {
        p.y = buffer(size);
        ((bt_bitplane_matmul_fn *)kernel->run)(&p, tiles / 2, tiles);
        ((bt_bitplane_matmul_fn *)kernel->run)(&p, 0, tiles / 2);
        check(memcmp(p.y, expected, size) == 0, kernel->variant);
    }
    release();
}

void test_bitplane_matmul(void) {
    for (int i = 1; i < COUNT_K; i++)
        for (int j = 0; j < COUNT_M; j++)
            check_product(some_m[j], some_n[(i + j) % COUNT_N], some_k[i], 0, 0);
    check_product(65, 66, 513, 0, 0);
    check_product(5, 7, 20000, 0, 0);
    check_product(5, 7, 20000, 0, 1);
}
