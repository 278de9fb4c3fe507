/* ternary_embedding: the bytes of the scalar kernel. */
#include "../../csrc/kernels/ternary_embedding.h"
#include "test.h"

static const Kernel<bt_ternary_embedding_fn> EMBEDDING[] = {BT_TERNARY_EMBEDDING(GPU_KERNEL)};

static void embedding_case(Random &random, int64_t m, int64_t k, int depth, int y_type) {
    const int64_t n = 7, ldw = bt_div_up(k, 4) + random.below(3);
    const int64_t ldy = random.below(2) ? k + random.below(3) : bt_div_up(k, 4) * 4; /* or rows that are aligned */
    std::vector<int64_t> indices((size_t)m);
    for (auto &index : indices)
        index = random.below(n + 2) - 1; /* one below and one above the table, too */
    const Buffer index = buffer_of(indices), packed = random_packed(random, depth * n, k, ldw);
    for (const auto &grouping : groupings(depth * n, k)) {
        const Buffer scale = random_floats(random, BT_F32, 1, grouping.scales, grouping.scales);
        const Buffer expected(y_type, m, k, ldy);
        bt_ternary_embedding p = {};
        p.index = index.data<int64_t>(), p.w = packed.data<uint8_t>(), p.scale = scale.data<float>();
        p.y = expected.data();
        p.m = m, p.n = n, p.k = k, p.ldw = ldw, p.ldy = ldy, p.lds = grouping.lds, p.group = grouping.group;
        p.depth = depth, p.y_type = y_type;
        bt_ternary_embedding_scalar(&p, 0, m);
        for (const auto &kernel : EMBEDDING)
            for_orders([&](const char *order) {
                const Buffer y(y_type, m, k, ldy);
                p.y = y.data();
                const bt_status status = kernel.run(&p, 0, 0);
                check(status == BT_OK && y.equals(expected), "ternary_embedding %s m=%ld k=%ld depth=%d %s %s %s",
                      kernel.variant, (long)m, (long)k, depth, type_name(y_type), grouping.name, order);
            });
    }
}

void test_embedding() {
    Random random(7);
    for (const int64_t k : {0, 1, 3, 4, 5, 33, 64, 120, 257})
        for (const int64_t m : {0, 1, 9})
            for (int y_type = BT_F32; y_type <= BT_BF16; y_type++)
                embedding_case(random, m, k, 1 + (int)random.below(3), y_type);
    embedding_case(random, 2, 2100, 1, BT_BF16); /* more columns than three blocks take at once */
}
