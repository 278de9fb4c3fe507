/* hadamard: the bytes of the scalar kernel. */
#include "../../csrc/kernels/hadamard.h"
#include "test.h"

static const Kernel<bt_hadamard_fn> HADAMARD[] = {BT_HADAMARD(GPU_KERNEL)};

static Buffer random_signs(Random &random, int64_t k) {
    Buffer sign(BT_I8, 1, k, k);
    for (int64_t c = 0; c < k; c++)
        sign.data<int8_t>()[c] = random.below(2) ? 1 : -1;
    return sign;
}

static void hadamard_case(Random &random, int64_t m, int64_t blocks, int64_t n, int type) {
    const int64_t k = blocks * n, ldx = k + random.below(3), ldy = k + random.below(3);
    const Buffer x = random_floats(random, type, m, k, ldx), expected(type, m, k, ldy);
    const Buffer before = random_signs(random, k), after = random_signs(random, k);
    bt_hadamard p = {};
    p.x = x.data(), p.y = expected.data();
    p.before = random.below(3) ? before.data<int8_t>() : nullptr;
    p.after = random.below(2) ? after.data<int8_t>() : nullptr;
    p.m = m, p.k = k, p.n = n, p.ldx = ldx, p.ldy = ldy, p.type = type;
    bt_hadamard_scalar(&p, 0, bt_hadamard_tiles(&p));
    for (const auto &kernel : HADAMARD)
        for_orders([&](const char *order) {
            const Buffer y(type, m, k, ldy);
            p.y = y.data();
            const bt_status status = kernel.run(&p, 0, 0);
            check(status == BT_OK && y.equals(expected), "hadamard %s m=%ld k=%ld n=%ld %s %s", kernel.variant, (long)m,
                  (long)k, (long)n, type_name(type), order);
        });
}

void test_hadamard() {
    Random random(8);
    for (int type = BT_F32; type <= BT_BF16; type++) {
        for (const int64_t n : {1, 2, 8, 64, 256})
            for (const int64_t m : {0, 1, 3})
                for (const int64_t blocks : {0, 1, 3})
                    hadamard_case(random, m, blocks, n, type);
        hadamard_case(random, 70, 1, 256, type); /* more than three blocks of threads take at once */
    }
    for (const int64_t n : {4096, 8192, 16384, BT_HADAMARD_MAX + 0}) /* whole, and in 2, 4 and 8 parts */
        hadamard_case(random, 1, n == 8192 ? 2 : 1, n, n == 4096 ? BT_F16 : BT_F32);
}
