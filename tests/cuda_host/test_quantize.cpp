/* ternary_quantize: the codes of the scalar kernel, its scales to one unit in the last place. */
#include "../../csrc/kernels/ternary_quantize.h"
#include "test.h"

static const Kernel<bt_ternary_quantize_fn> KERNELS[] = {BT_TERNARY_QUANTIZE(GPU_KERNEL)};
#define BT_TEXT(name, text, property) text,
static const char *const METHODS[] = {BT_METHODS(BT_TEXT)}, *const RULES[] = {BT_SCALES(BT_TEXT)};

static bool same_scale(float a, float b) {
    if (std::isnan(a) || std::isnan(b))
        return std::isnan(a) && std::isnan(b);
    return abs((int32_t)bt_float_bits(a) - (int32_t)bt_float_bits(b)) <= 1;
}

static int64_t different_scales(const Buffer &a, const Buffer &b) {
    int64_t count = 0;
    for (int64_t i = 0; i < a.columns; i++)
        count += !same_scale(a.at(0, i), b.at(0, i));
    return count;
}

static void compare(const Buffer &w, const Grouping &grouping, int method, int rule, float factor, const char *what) {
    const int64_t n = w.rows, k = w.columns, bytes = bt_div_up(k, 4), ldw = bytes + (n + k) % 3;
    const Buffer packed(BT_I8, n, bytes, ldw), scale(BT_F32, 1, grouping.scales, grouping.scales);
    bt_ternary_quantize p = {};
    p.w = w.data();
    p.packed = packed.data<uint8_t>();
    p.scale = scale.data<float>();
    p.n = n, p.k = k, p.ldx = w.stride, p.ldw = ldw, p.lds = grouping.lds, p.group = grouping.group;
    p.w_type = w.type, p.method = method, p.rule = rule;
    p.threshold_factor = factor;
    const Buffer workspace(BT_I8, 1, (int64_t)bt_ternary_quantize_workspace(&p), 1);
    p.workspace = workspace.data();
    bt_ternary_quantize_scalar(&p, 0, bt_ternary_quantize_tiles(&p));
    for (const auto &kernel : KERNELS)
        for_orders([&](const char *order) {
            const Buffer packed2(BT_I8, n, bytes, ldw), scale2(BT_F32, 1, grouping.scales, grouping.scales);
            const Buffer device_workspace(BT_I8, 1, (int64_t)bt_ternary_quantize_cuda_workspace(&p), 1);
            p.packed = packed2.data<uint8_t>();
            p.scale = scale2.data<float>();
            p.workspace = device_workspace.data();
            const bt_status status = kernel.run(&p, 0, 0);
            const long scales = (long)different_scales(scale, scale2);
            check(status == BT_OK && packed2.equals(packed) && scales == 0,
                  "ternary_quantize %s n=%ld k=%ld %s %s %s %s/%ld %s %s: %ld scales differ, codes %s", kernel.variant,
                  (long)n, (long)k, type_name(w.type), METHODS[method], RULES[rule], grouping.name,
                  (long)grouping.group, what, order, scales, packed2.equals(packed) ? "equal" : "differ");
        });
}

static float usual_factor(int method) {
    return method == BT_METHOD_TWN ? 0.7f : method == BT_METHOD_MAX ? 0.05f : 0.5f;
}

static void all_methods(const Buffer &w, int rule, const char *what) {
    for (const auto &grouping : groupings(w.rows, w.columns))
        for (int method = 0; method < BT_METHOD_COUNT; method++)
            compare(w, grouping, method, (rule + method) % BT_SCALE_COUNT, usual_factor(method), what);
}

/* Magnitudes of a few values only: many ties, at the thresholds too. */
static Buffer few_values(Random &random, int type, int64_t n, int64_t k) {
    Buffer w(type, n, k, k);
    for (int64_t i = 0; i < n * k; i++)
        w.put(i / k, i % k, (float)(random.below(9) - 4) * 0.25f);
    return w;
}

/* Groups of 4, and the rows and tensors that have them: zeros, one non-zero, non-finite, all equal, tiny. */
static void special(Random &random, int type) {
    const float values[] = {0.0f, -0.0f, INFINITY, -INFINITY, NAN, -NAN, 1.0f, -1.0f, 1e-7f, 6e-8f};
    const int64_t n = sizeof values / sizeof *values;
    const Buffer one = random_floats(random, type, n, 8, 9), all(type, n, 8, 8), mixed(type, n, 8, 8);
    for (int64_t i = 0; i < n; i++) {
        one.put(i, random.below(8), values[i]);
        for (int64_t c = 0; c < 8; c++) {
            all.put(i, c, values[i]);
            mixed.put(i, c, c == 5 ? values[i] : 0.0f);
        }
        const Buffer tensor(type, 3, 5, 6);
        for (int64_t e = 0; e < 15; e++)
            tensor.put(e / 5, e % 5, e == 7 ? values[i] : 0.25f);
        all_methods(tensor, (int)i, "one special value in the tensor");
    }
    /* Every rule with every method in fp32, one of them with the halves. */
    for (int rule = BT_SCALE_LS; rule < (type == BT_F32 ? BT_SCALE_COUNT : 1); rule++) {
        all_methods(one, rule, "one special value a row");
        all_methods(all, rule, "rows of a special value");
        all_methods(mixed, rule, "a special value among zeros");
    }
}

/* Squares that no fp32 holds, and where three of four are kept a norm that the type cannot hold. */
static void extremes(Random &random, int type) {
    const float largest = (float)bt_largest_of(type);
    for (const float magnitude : {largest, largest / 2, type == BT_F16 ? 1e-4f : 1e-30f}) {
        Buffer w(type, 3, 64, 64);
        for (int64_t i = 0; i < 3 * 64; i++)
            w.put(i / 64, i % 64, random.below(2) ? magnitude : -magnitude);
        for (const auto &grouping : groupings(w.rows, w.columns))
            for (int method = 0; method < BT_METHOD_COUNT; method++)
                compare(w, grouping, method, BT_SCALE_RMS, usual_factor(method), "extreme");
    }
}

void test_quantize() {
    Random random(3);
    for (const int64_t k : SIZES)
        for (const int64_t n : {0, 1, 4})
            if (n * k < 400) {
                const int type = (int)((n + k) % 3);
                all_methods(random_floats(random, type, n, k, k + random.below(3)), (int)(k % BT_SCALE_COUNT),
                            "random");
            }
    for (int type = BT_F32; type <= BT_BF16; type++) {
        all_methods(random_floats(random, type, 4, 60, 61), type, "random");
        all_methods(few_values(random, type, 3, 64), type, "few values");
        special(random, type);
        extremes(random, type);
    }
    /* Several slices of a tensor, and factors that keep all and nothing. */
    for (int method = BT_METHOD_MAX; method <= BT_METHOD_ABSMEAN; method++)
        for (const auto &grouping : {Grouping{"tensor", 0, 257, 1}, Grouping{"channel", 1, 257, 17}})
            for (const float factor : {0.0f, usual_factor(method), 50.0f})
                compare(random_floats(random, method, 17, 257, 258), grouping, method, method, factor, "large");
    /* Four weights at a time, in several slices of a tensor and in rows; slices that end inside a row. */
    for (int type = BT_F32; type <= BT_BF16; type++)
        for (int method = 0; method < BT_METHOD_COUNT; method++)
            for (const auto &grouping : {Grouping{"tensor", 0, 1030, 1}, Grouping{"channel", 1, 1030, 11}})
                if (method != BT_METHOD_ABSMEDIAN && method != BT_METHOD_OPTIMAL)
                    compare(random_floats(random, type, 11, 1030, 1032), grouping, method,
                            (method + type) % BT_SCALE_COUNT, usual_factor(method), "fours");
    for (const float factor : {0.0f, 50.0f})
        compare(random_floats(random, BT_F32, 3, 33, 33), {"channel", 1, 33, 3}, BT_METHOD_ABSMEDIAN, BT_SCALE_LS,
                factor, "factor");
    /* Tensors larger than a block of keys, and longer than a block of threads. */
    compare(random_floats(random, BT_F32, 9, 257, 257), {"tensor", 0, 257, 1}, BT_METHOD_OPTIMAL, 0, 0, "large");
    compare(random_floats(random, BT_F16, 9, 257, 257), {"tensor", 0, 257, 1}, BT_METHOD_ABSMEDIAN, 0, 0.5f, "large");
}
