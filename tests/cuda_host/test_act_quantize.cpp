/* act_quantize: the bytes, scales and sums of the scalar kernel. */
#include "../../csrc/kernels/act_quantize.h"
#include "test.h"

static const Kernel<bt_act_quantize_fn> KERNELS[] = {BT_ACT_QUANTIZE(GPU_KERNEL)};

static void compare_digits(const Buffer &x, int order_of_q, int64_t ldq, int digits, bool with_sum, const char *what) {
    const int64_t m = x.rows, k = x.columns;
    const int64_t width = order_of_q == BT_ORDER_PLANES ? bt_div_up(k, BT_ACT_BLOCK) * BT_ACT_BLOCK : k;
    const int64_t rows = digits * m;
    /* Two floats hold the bits of a step. */
    const Buffer q(BT_I8, rows, width, ldq), scale(BT_F32, 1, 2 * m, 2 * m), sum(BT_F32, 1, rows, rows);
    bt_act_quantize p = {};
    p.x = x.data();
    p.q = q.data<int8_t>();
    p.scale = scale.data<float>();
    p.step = scale.data<double>();
    p.sum = with_sum ? sum.data<int32_t>() : nullptr;
    p.m = m, p.k = k, p.ldx = x.stride, p.ldq = ldq;
    p.x_type = x.type, p.order = order_of_q, p.digits = digits;
    bt_act_quantize_scalar(&p, 0, m);
    for (const auto &kernel : KERNELS)
        for_orders([&](const char *order) {
            const Buffer q2(BT_I8, rows, width, ldq), scale2(BT_F32, 1, 2 * m, 2 * m), sum2(BT_F32, 1, rows, rows);
            p.q = q2.data<int8_t>();
            p.scale = scale2.data<float>();
            p.step = scale2.data<double>();
            p.sum = with_sum ? sum2.data<int32_t>() : nullptr;
            const bt_status status = kernel.run(&p, 0, 0);
            check(status == BT_OK && q2.equals(q) && scale2.equals(scale) && sum2.equals(sum),
                  "act_quantize %s m=%ld k=%ld %s order %d digits %d %s %s", kernel.variant, (long)m, (long)k,
                  type_name(x.type), order_of_q, digits, what, order);
        });
}

/* With stride 4: the codes of natural order, each 16 of them transposed, and zeros past the last. */
static void stride4(const Buffer &x, int digits) {
    const int64_t m = x.rows, k = x.columns, rows = digits * m, width = bt_quantized_width(k, BT_ORDER_STRIDE4);
    const Buffer natural(BT_I8, rows, k, k), scale(BT_F32, 1, 2 * m, 2 * m), expected(BT_I8, rows, width, width);
    bt_act_quantize p = {};
    p.x = x.data();
    p.q = natural.data<int8_t>();
    p.scale = scale.data<float>();
    p.step = scale.data<double>();
    p.m = m, p.k = p.ldq = k, p.ldx = x.stride, p.x_type = x.type, p.digits = digits;
    bt_act_quantize_scalar(&p, 0, m);
    memset(expected.data(), 0, expected.bytes);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < k; c++) {
            const int64_t four = c % 16;
            expected.data<int8_t>()[r * width + c - four + four % 4 * 4 + four / 4] = natural.data<int8_t>()[r * k + c];
        }
    for (const auto &kernel : KERNELS)
        for_orders([&](const char *order) {
            const Buffer q(BT_I8, rows, width, width), scale2(BT_F32, 1, 2 * m, 2 * m);
            p.q = q.data<int8_t>();
            p.scale = scale2.data<float>();
            p.step = scale2.data<double>();
            p.ldq = width, p.order = BT_ORDER_STRIDE4;
            const bt_status status = kernel.run(&p, 0, 0);
            check(status == BT_OK && q.equals(expected) && scale2.equals(scale),
                  "act_quantize %s m=%ld k=%ld %s stride 4 digits %d %s", kernel.variant, (long)m, (long)k,
                  type_name(x.type), digits, order);
        });
}

static void compare(const Buffer &x, int order_of_q, int64_t ldq, bool with_sum, const char *what) {
    for (int digits = 1; digits <= (x.type == BT_I8 ? 1 : BT_MAX_DIGITS); digits++)
        compare_digits(x, order_of_q, ldq, digits, with_sum, what);
}

static void shape(Random &random, int64_t m, int64_t k, int type) {
    const int64_t ldx = k + random.below(4);
    const Buffer x = type == BT_I8 ? random_int8(random, m, k, ldx) : random_floats(random, type, m, k, ldx);
    compare(x, BT_ORDER_NATURAL, k + random.below(4), random.below(2), "random");
    compare(x, BT_ORDER_NATURAL, (bt_div_up(k, 16) + random.below(2)) * 16, random.below(2), "aligned");
    compare(x, BT_ORDER_PLANES, (bt_div_up(k, 256) + random.below(2)) * 256, random.below(2), "random");
    for (int digits = 1; digits <= (type == BT_I8 ? 1 : BT_MAX_DIGITS); digits++)
        stride4(x, digits);
}

/* Halves of steps, which round to even, and values that a reciprocal of 127 / m would round otherwise. */
static void ties(Random &random, int type) {
    const Buffer x = random_floats(random, type, 6, 300, 300);
    for (int64_t i = 0; i < x.rows; i++)
        for (int64_t k = 0; k < x.columns; k++)
            x.put(i, k, (float)(random.below(509) - 254) * 0.5f * ldexpf(1.0f, (int)(4 * i - 12)));
    for (int64_t i = 0; i < x.rows; i++)
        x.put(i, 5, -127.0f * ldexpf(1.0f, (int)(4 * i - 12)));
    compare(x, BT_ORDER_NATURAL, 300, true, "ties");
}

static void special(Random &random, int type) {
    const float values[] = {INFINITY, -INFINITY, NAN, -NAN, 0.0f, 1e-5f, -1e-7f, 65504.0f};
    const Buffer x = random_floats(random, type, 16, 270, 271);
    for (int64_t i = 0; i < 8; i++) {
        x.put(i, random.below(270), values[i]);
        for (int64_t k = 0; k < 270; k++)
            x.put(8 + i, k, values[i]);
    }
    compare(x, BT_ORDER_NATURAL, 271, true, "special");
    compare(x, BT_ORDER_NATURAL, 272, true, "special");
    stride4(x, 1);
    compare(x, BT_ORDER_PLANES, 512, true, "special");
}

void test_act_quantize() {
    Random random(2);
    for (int type = BT_F32; type <= BT_I8; type++) {
        for (const int64_t k : SIZES)
            for (const int64_t m : {0, 1, 5})
                shape(random, m, k, type);
        shape(random, 33, 65, type);
        shape(random, 2, 1030, type);
        stride4(random_floats(random, type == BT_I8 ? (int)BT_F32 : type, 2, 4200, 4200), 1); /* aligned, two turns */
        if (type != BT_I8) {
            ties(random, type);
            special(random, type);
        }
    }
}
