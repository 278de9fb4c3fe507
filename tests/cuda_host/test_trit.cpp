/* trit_elementwise, trit_reduce, bitplane_pack and bitplane_matmul: what the scalar kernels give. */
#include "../../csrc/kernels/bitplane_matmul.h"
#include "../../csrc/kernels/bitplane_pack.h"
#include "../../csrc/kernels/trit_elementwise.h"
#include "../../csrc/kernels/trit_reduce.h"
#include "test.h"

static const Kernel<bt_trit_elementwise_fn> ELEMENTWISE[] = {BT_TRIT_ELEMENTWISE(GPU_KERNEL)};
static const Kernel<bt_trit_reduce_fn> REDUCE[] = {BT_TRIT_REDUCE(GPU_KERNEL)};
static const Kernel<bt_bitplane_pack_fn> PACK[] = {BT_BITPLANE_PACK(GPU_KERNEL)};
static const Kernel<bt_bitplane_matmul_fn> MATMUL[] = {BT_BITPLANE_MATMUL(GPU_KERNEL)};

static void elementwise_case(Random &random, int64_t n, int64_t k, int function) {
    const int64_t bytes = bt_div_up(k, 4), lda = bytes + random.below(3), ldy = bytes + random.below(3);
    const bool alone = function == BT_TRIT_neg || function == BT_TRIT_abs;
    const Buffer a = random_packed(random, n, k, lda), b = random_packed(random, 1, k, bytes);
    const Buffer expected(BT_I8, n, bytes, ldy);
    bt_trit_elementwise p = {};
    p.a = a.data<uint8_t>(), p.b = alone ? nullptr : b.data<uint8_t>(), p.y = expected.data<uint8_t>();
    p.n = n, p.k = k, p.lda = lda, p.ldy = ldy, p.function = function;
    bt_trit_elementwise_scalar(&p, 0, n * bt_trit_chunks(k));
    for (const auto &kernel : ELEMENTWISE)
        for_orders([&](const char *order) {
            const Buffer y(BT_I8, n, bytes, ldy);
            p.y = y.data<uint8_t>();
            const bt_status status = kernel.run(&p, 0, 0);
            check(status == BT_OK && y.equals(expected), "trit_elementwise %s function=%d n=%ld k=%ld %s",
                  kernel.variant, function, (long)n, (long)k, order);
        });
}

static void reduce_case(Random &random, int64_t n, int64_t k, bool product) {
    const int64_t bytes = bt_div_up(k, 4), lda = bytes + random.below(3), tiles = n * bt_reduce_chunks(k);
    const Buffer a = random_packed(random, n, k, lda), b = random_packed(random, 1, k, bytes);
    const Buffer expected = buffer_of(std::vector<int64_t>((size_t)(2 * tiles), 7));
    bt_trit_reduce p = {};
    p.a = a.data<uint8_t>(), p.b = product ? b.data<uint8_t>() : nullptr, p.counts = expected.data<int64_t>();
    p.n = n, p.k = k, p.lda = lda;
    bt_trit_reduce_scalar(&p, 0, tiles);
    for (const auto &kernel : REDUCE)
        for_orders([&](const char *order) {
            const Buffer counts = buffer_of(std::vector<int64_t>((size_t)(2 * tiles), 7));
            p.counts = counts.data<int64_t>();
            const bt_status status = kernel.run(&p, 0, 0);
            check(status == BT_OK && counts.equals(expected), "trit_reduce %s n=%ld k=%ld product=%d %s",
                  kernel.variant, (long)n, (long)k, (int)product, order);
        });
}

static Buffer planes_case(Random &random, int64_t n, int64_t k) {
    const int64_t ldw = bt_div_up(k, 4) + random.below(3), ldp = bt_div_up(k, BT_PLANE_TRITS) * BT_PLANE_BLOCK_BYTES;
    const Buffer w = random_packed(random, n, k, ldw);
    Buffer expected(BT_I8, n, ldp, ldp);
    bt_bitplane_pack p = {w.data<uint8_t>(), expected.data<uint8_t>(), n, k, ldw, ldp, nullptr};
    bt_bitplane_pack_scalar(&p, 0, n);
    for (const auto &kernel : PACK)
        for_orders([&](const char *order) {
            const Buffer planes(BT_I8, n, ldp, ldp);
            p.planes = planes.data<uint8_t>();
            const bt_status status = kernel.run(&p, 0, 0);
            check(status == BT_OK && planes.equals(expected), "bitplane_pack %s n=%ld k=%ld %s", kernel.variant,
                  (long)n, (long)k, order);
        });
    return expected;
}

static void product_case(Random &random, int64_t m, int64_t n, int64_t k) {
    const Buffer a = planes_case(random, m, k), b = planes_case(random, n, k), expected(BT_F32, m, n, n + 1);
    bt_bitplane_matmul p = {};
    p.a = a.data<uint8_t>(), p.b = b.data<uint8_t>(), p.y = expected.data<int32_t>();
    p.m = m, p.n = n, p.blocks = bt_div_up(k, BT_PLANE_TRITS), p.lda = a.stride, p.ldb = b.stride, p.ldy = n + 1;
    bt_bitplane_matmul_scalar(&p, 0, bt_tiles(m, n));
    for (const auto &kernel : MATMUL)
        for_orders([&](const char *order) {
            const Buffer y(BT_F32, m, n, n + 1);
            p.y = y.data<int32_t>();
            const bt_status status = kernel.run(&p, 0, 0);
            check(status == BT_OK && y.equals(expected), "bitplane_matmul %s m=%ld n=%ld k=%ld %s", kernel.variant,
                  (long)m, (long)n, (long)k, order);
        });
}

void test_trit() {
    Random random(9);
    for (const int64_t k : SIZES)
        for (const int64_t n : {0, 1, 3}) {
            for (int function = 0; function < BT_TRIT_COUNT; function++)
                elementwise_case(random, n, k, function);
            reduce_case(random, n, k, false);
            reduce_case(random, n, k, true);
        }
    for (const int64_t k : {1, 5, 511, 512, 513, 1100})
        for (const int64_t m : {0, 1, 5})
            product_case(random, m, 3, k);
    product_case(random, 2, 200, 70);               /* more elements than three blocks take at once */
    elementwise_case(random, 2, 4100, BT_TRIT_mul); /* more bytes than threads */
    reduce_case(random, 5, 4099, true);             /* more rows than blocks take at once */
    reduce_case(random, 1, 4 * BT_REDUCE_CHUNK + 5, false);
}
