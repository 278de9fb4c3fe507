/* act_quantize: the bytes, scales and sums of the scalar kernel. */
#include "../../csrc/kernels/act_quantize.h"
#include "test.h"

static const Kernel<bt_act_quantize_fn> KERNELS[] = {BT_ACT_QUANTIZE(GPU_KERNEL)};

/* x alone, or its norm by a weight. */
static bt_act_quantize quantized(const Buffer &x, const Buffer *norm) {
    bt_act_quantize p = {};
    p.x = x.data();
    p.m = x.rows, p.k = x.columns, p.ldx = x.stride, p.x_type = x.type;
    if (norm) {
        p.norm_weight = norm->data();
        p.norm_type = norm->type, p.norm_eps = 1e-5;
    }
    return p;
}

static void compare_digits(const Buffer &x, const Buffer *norm, int order_of_q, int64_t ldq, int digits, bool with_sum,
                           const char *what) {
    const int64_t m = x.rows, k = x.columns;
    const int64_t width = order_of_q == BT_ORDER_PLANES ? bt_div_up(k, BT_ACT_BLOCK) * BT_ACT_BLOCK : k;
    const int64_t rows = digits * m;
    /* Two floats hold the bits of a step. */
    const Buffer q(BT_I8, rows, width, ldq), scale(BT_F32, 1, 2 * m, 2 * m), sum(BT_F32, 1, rows, rows);
    bt_act_quantize p = quantized(x, norm);
    p.q = q.data<int8_t>();
    p.scale = scale.data<float>();
    p.step = scale.data<double>();
    p.sum = with_sum ? sum.data<int32_t>() : nullptr;
    p.ldq = ldq, p.order = order_of_q, p.digits = digits;
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
                  "act_quantize %s m=%ld k=%ld %s norm %s order %d digits %d %s %s", kernel.variant, (long)m, (long)k,
                  type_name(x.type), norm ? type_name(norm->type) : "none", order_of_q, digits, what, order);
        });
}

/* With stride 4: the codes of natural order, each 16 of them transposed, and zeros past the last. */
static void stride4(const Buffer &x, const Buffer *norm, int digits) {
    const int64_t m = x.rows, k = x.columns, rows = digits * m, width = bt_quantized_width(k, BT_ORDER_STRIDE4);
    const Buffer natural(BT_I8, rows, k, k), scale(BT_F32, 1, 2 * m, 2 * m), expected(BT_I8, rows, width, width);
    bt_act_quantize p = quantized(x, norm);
    p.q = natural.data<int8_t>();
    p.scale = scale.data<float>();
    p.step = scale.data<double>();
    p.ldq = k, p.digits = digits;
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
                  "act_quantize %s m=%ld k=%ld %s norm %s stride 4 digits %d %s", kernel.variant, (long)m, (long)k,
                  type_name(x.type), norm ? type_name(norm->type) : "none", digits, order);
        });
}

static int most_digits(const Buffer &x) {
    return x.type == BT_I8 ? 1 : BT_MAX_DIGITS;
}

static void compare(const Buffer &x, const Buffer *norm, int order_of_q, int64_t ldq, bool with_sum, const char *what) {
    for (int digits = 1; digits <= most_digits(x); digits++)
        compare_digits(x, norm, order_of_q, ldq, digits, with_sum, what);
}

static void shape(Random &random, int64_t m, int64_t k, int type) {
    const int64_t ldx = k + random.below(4);
    const Buffer x = type == BT_I8 ? random_int8(random, m, k, ldx) : random_floats(random, type, m, k, ldx);
    compare(x, nullptr, BT_ORDER_NATURAL, k + random.below(4), random.below(2), "random");
    compare(x, nullptr, BT_ORDER_NATURAL, (bt_div_up(k, 16) + random.below(2)) * 16, random.below(2), "aligned");
    compare(x, nullptr, BT_ORDER_PLANES, (bt_div_up(k, 256) + random.below(2)) * 256, random.below(2), "random");
    for (int digits = 1; digits <= most_digits(x); digits++)
        stride4(x, nullptr, digits);
}

/* Blocks of 256 threads however short the row: few cases. */
static void norms(Random &random, int64_t m, int64_t k, int type) {
    const Buffer x = random_floats(random, type, m, k, k + random.below(4));
    const Buffer weight = random_floats(random, (int)random.below(3), 1, k, k);
    const int digits = 1 + (int)random.below(BT_MAX_DIGITS);
    compare_digits(x, &weight, BT_ORDER_NATURAL, k, 1, true, "random");
    compare_digits(x, &weight, BT_ORDER_NATURAL, bt_div_up(k, 16) * 16, digits, false, "aligned");
    compare_digits(x, &weight, BT_ORDER_PLANES, bt_div_up(k, 256) * 256, digits, true, "random");
    stride4(x, &weight, 1);
}

/* Halves of steps, which round to even, and values that a reciprocal of 127 / m would round otherwise. */
static void ties(Random &random, int type) {
    const Buffer x = random_floats(random, type, 6, 300, 300);
    for (int64_t i = 0; i < x.rows; i++)
        for (int64_t k = 0; k < x.columns; k++)
            x.put(i, k, (float)(random.below(509) - 254) * 0.5f * ldexpf(1.0f, (int)(4 * i - 12)));
    for (int64_t i = 0; i < x.rows; i++)
        x.put(i, 5, -127.0f * ldexpf(1.0f, (int)(4 * i - 12)));
    compare(x, nullptr, BT_ORDER_NATURAL, 300, true, "ties");
}

static void special(Random &random, int type) {
    const float values[] = {INFINITY, -INFINITY, NAN, -NAN, 0.0f, 1e-5f, -1e-7f, 0x1p-14f, 65504.0f};
    const int64_t count = sizeof values / sizeof *values;
    const Buffer x = random_floats(random, type, 2 * count, 270, 271);
    for (int64_t i = 0; i < count; i++) {
        x.put(i, random.below(270), values[i]);
        for (int64_t k = 0; k < 270; k++)
            x.put(count + i, k, values[i]);
    }
    const Buffer weight = random_floats(random, BT_F32, 1, 270, 270), bounds(type, 1, 270, 270);
    for (int64_t k = 0; k < 270; k++)
        bounds.put(0, k, values[count - 1 - k / 16 % 2]);
    compare(x, nullptr, BT_ORDER_NATURAL, 271, true, "special");
    compare(x, nullptr, BT_ORDER_NATURAL, 272, true, "special");
    stride4(x, nullptr, 1);
    stride4(x, &weight, 1);
    stride4(x, &bounds, 1);
    compare(x, nullptr, BT_ORDER_PLANES, 512, true, "special");
    compare_digits(x, &weight, BT_ORDER_PLANES, 512, 3, true, "special");
    compare_digits(x, &bounds, BT_ORDER_NATURAL, 272, 1, true, "special");
}

void test_act_quantize() {
    Random random(2);
    for (int type = BT_F32; type <= BT_I8; type++) {
        for (const int64_t k : SIZES)
            for (const int64_t m : {0, 1, 5})
                shape(random, m, k, type);
        for (int64_t k = 18; k < 31; k++) /* every end of 16 */
            shape(random, 1, k, type);
        shape(random, 33, 65, type);
        shape(random, 2, 1030, type);
        if (type != BT_I8) {
            const Buffer x = random_floats(random, type, 2, 4200, 4200); /* aligned, two turns */
            const Buffer weight = random_floats(random, type, 1, 4200, 4200);
            stride4(x, nullptr, 1);
            stride4(x, &weight, 1);
            for (const int64_t k : SIZES)
                norms(random, 2, k, type);
            norms(random, 5, 1030, type);
            ties(random, type);
            special(random, type);
        }
    }
}
