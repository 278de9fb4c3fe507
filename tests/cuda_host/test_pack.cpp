/* ternary_pack, ternary_unpack, ternary_check and ternary_transpose: the bytes of the scalar kernels. */
#include "../../csrc/kernels/ternary_check.h"
#include "../../csrc/kernels/ternary_pack.h"
#include "../../csrc/kernels/ternary_transpose.h"
#include "../../csrc/kernels/ternary_unpack.h"
#include "test.h"

static const Kernel<bt_ternary_pack_fn> PACK[] = {BT_TERNARY_PACK(GPU_KERNEL)};
static const Kernel<bt_ternary_unpack_fn> UNPACK[] = {BT_TERNARY_UNPACK(GPU_KERNEL)};
static const Kernel<bt_ternary_check_fn> CHECK[] = {BT_TERNARY_CHECK(GPU_KERNEL)};
static const Kernel<bt_ternary_transpose_fn> TRANSPOSE[] = {BT_TERNARY_TRANSPOSE(GPU_KERNEL)};

static void pack_case(Random &random, int64_t n, int64_t k) {
    const int64_t ldc = k + random.below(3), ldw = bt_div_up(k, 4) + random.below(3);
    Buffer codes = random_int8(random, n, k, ldc);
    for (int64_t i = 0; i < (int64_t)codes.bytes; i++)
        if (random.below(50) > 0) /* else: any value, which becomes 11 */
            codes.data<int8_t>()[i] = (int8_t)(random.below(3) - 1);
    const Buffer expected(BT_I8, n, bt_div_up(k, 4), ldw);
    bt_ternary_pack p = {codes.data<int8_t>(), expected.data<uint8_t>(), n, k, ldc, ldw, nullptr};
    bt_ternary_pack_scalar(&p, 0, n);
    for (const auto &kernel : PACK)
        for_orders([&](const char *order) {
            const Buffer packed(BT_I8, n, bt_div_up(k, 4), ldw);
            p.packed = packed.data<uint8_t>();
            const bt_status status = kernel.run(&p, 0, 0);
            check(status == BT_OK && packed.equals(expected), "ternary_pack %s n=%ld k=%ld %s", kernel.variant, (long)n,
                  (long)k, order);
        });
}

static void unpack_case(Random &random, int64_t n, int64_t k, int y_type, const Grouping &grouping, bool scaled) {
    const int64_t ldw = bt_div_up(k, 4) + random.below(3);
    const int64_t ldy = random.below(2) ? k + random.below(3) : bt_div_up(k, 16) * 16; /* or rows at 16 bytes */
    const Buffer packed = random_packed(random, n, k, ldw), expected(y_type, n, k, ldy);
    const Buffer scale = random_floats(random, BT_F32, 1, grouping.scales, grouping.scales);
    for (int64_t i = 0; i < grouping.scales; i += 2)
        scale.put(0, i, HALF_BOUNDS[i / 2 % 5]);
    bt_ternary_unpack p = {};
    p.w = packed.data<uint8_t>();
    p.scale = scaled ? scale.data<float>() : nullptr;
    p.y = expected.data();
    p.n = n, p.k = k, p.ldw = ldw, p.ldy = ldy, p.lds = grouping.lds, p.group = grouping.group;
    p.y_type = y_type;
    bt_ternary_unpack_scalar(&p, 0, n);
    for (const auto &kernel : UNPACK)
        for_orders([&](const char *order) {
            const Buffer y(y_type, n, k, ldy);
            p.y = y.data();
            const bt_status status = kernel.run(&p, 0, 0);
            check(status == BT_OK && y.equals(expected), "ternary_unpack %s n=%ld k=%ld %s %s %s %s", kernel.variant,
                  (long)n, (long)k, type_name(y_type), grouping.name, scaled ? "scaled" : "codes", order);
        });
}

/* `faults` random codes become 11, or are set in the padding. */
static void check_case(Random &random, int64_t n, int64_t k, int faults) {
    const int64_t bytes = bt_div_up(k, 4), ldw = bytes + random.below(3);
    const Buffer packed = random_packed(random, n, k, ldw);
    for (int i = 0; i < faults && n * k > 0; i++) {
        const int64_t column = random.below(4 * bytes);
        const int code = column < k ? 3 : (int)(1 + random.below(3));
        packed.data<uint8_t>()[random.below(n) * ldw + column / 4] |= (uint8_t)(code << (2 * (column % 4)));
    }
    const Buffer expected = buffer_of(std::vector<int64_t>((size_t)n, 7));
    bt_ternary_check p = {packed.data<uint8_t>(), expected.data<int64_t>(), n, k, ldw, nullptr};
    bt_ternary_check_scalar(&p, 0, n);
    for (const auto &kernel : CHECK)
        for_orders([&](const char *order) {
            const Buffer column = buffer_of(std::vector<int64_t>((size_t)n, 7));
            p.column = column.data<int64_t>();
            const bt_status status = kernel.run(&p, 0, 0);
            check(status == BT_OK && column.equals(expected), "ternary_check %s n=%ld k=%ld %s", kernel.variant,
                  (long)n, (long)k, order);
        });
}

static void transpose_case(Random &random, int64_t n, int64_t k) {
    const int64_t ldw = bt_div_up(k, 4) + random.below(3), ldt = bt_div_up(n, 4) + random.below(3);
    const Buffer packed = random_packed(random, n, k, ldw), expected(BT_I8, k, bt_div_up(n, 4), ldt);
    bt_ternary_transpose p = {packed.data<uint8_t>(), expected.data<uint8_t>(), n, k, ldw, ldt, nullptr};
    bt_ternary_transpose_scalar(&p, 0, bt_div_up(k, BT_TRANSPOSE_TILE));
    for (const auto &kernel : TRANSPOSE)
        for_orders([&](const char *order) {
            const Buffer t(BT_I8, k, bt_div_up(n, 4), ldt);
            p.t = t.data<uint8_t>();
            const bt_status status = kernel.run(&p, 0, 0);
            check(status == BT_OK && t.equals(expected), "ternary_transpose %s n=%ld k=%ld %s", kernel.variant, (long)n,
                  (long)k, order);
        });
}

void test_pack() {
    Random random(1);
    for (const int64_t k : SIZES)
        for (const int64_t n : {0, 1, 3, 5, 33}) {
            pack_case(random, n, k);
            transpose_case(random, n, k);
            for (int faults = 0; faults < 40; faults += 19)
                check_case(random, n, k, faults);
        }
    pack_case(random, 2, 4100); /* more bytes than threads */
    check_case(random, 9, 4099, 3);
    for (const int64_t k : {0, 1, 3, 4, 5, 33, 64, 120, 257})
        for (const int64_t n : {0, 1, 5})
            for (const auto &grouping : groupings(n, k))
                for (int y_type = BT_F32; y_type <= BT_I8; y_type++)
                    unpack_case(random, n, k, y_type, grouping, y_type != BT_I8 && random.below(4) > 0);
}
