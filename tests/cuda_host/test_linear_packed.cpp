/* ternary_linear_packed: a relative L2 error of 1e-5 against fp64, plus the rounding of the output type, and the NaN
 * pattern of the scalar kernel. */
#include "../../csrc/kernels/ternary_linear_packed.h"
#include "test.h"

static const Kernel<bt_ternary_linear_packed_fn> KERNELS[] = {BT_TERNARY_LINEAR_PACKED(GPU_KERNEL)};

struct Problem {
    Buffer x, w, scale, bias, y; /* y is the scalar's */
    std::vector<double> exact;
    bt_ternary_linear_packed p;
};

static int trit_at(const Buffer &w, int64_t r, int64_t c) {
    const int code = w.data<uint8_t>()[r * w.stride + c / 4] >> (2 * (c % 4)) & 3;
    return (code & 1) - (code >> 1);
}

static std::vector<double> exact_product(const bt_ternary_linear_packed &p, const Buffer &x, const Buffer &w,
                                         const Buffer &bias) {
    std::vector<double> y;
    for (int64_t i = 0; i < p.m; i++)
        for (int64_t r = 0; r < p.n; r++) {
            double sum = p.bias ? (double)bias.at(0, r) : 0.0;
            for (int64_t c = 0; c < p.k; c++)
                sum += (double)trit_at(w, r, c) * (double)x.at(i, c) * (double)p.scale[r * p.lds + c / p.group];
            y.push_back(sum);
        }
    return y;
}

/* What the scalar kernel and float64 make of it. */
static void multiply(Problem &a) {
    bt_ternary_linear_packed p = a.p;
    p.ldxp = bt_div_up(p.k, BT_FLOAT_BLOCK) * BT_FLOAT_BLOCK;
    const Buffer xp(BT_F32, p.m, p.ldxp, p.ldxp);
    p.xp = xp.data<float>();
    bt_ternary_linear_packed_prepare(&p, 0, p.m);
    bt_ternary_linear_packed_scalar(&p, 0, bt_tiles(p.m, p.n));
    a.exact = exact_product(p, a.x, a.w, a.bias);
}

static Problem make(Random &random, int64_t m, int64_t n, int64_t k, const Grouping &grouping, int x_type, int y_type,
                    int bias_type, int64_t ldx, int64_t ldw) {
    const int64_t scales = grouping.scales;
    Problem a = {random_floats(random, x_type, m, k, ldx),
                 random_packed(random, n, k, ldw),
                 random_floats(random, BT_F32, 1, scales, scales),
                 random_floats(random, bias_type < 0 ? (int)BT_F32 : bias_type, 1, n, n),
                 Buffer(y_type, m, n, n + random.below(3)),
                 {},
                 {}};
    bt_ternary_linear_packed &p = a.p;
    p.x = a.x.data();
    p.w = a.w.data<uint8_t>();
    p.scale = a.scale.data<float>();
    p.bias = bias_type < 0 ? nullptr : a.bias.data();
    p.y = a.y.data();
    p.m = m, p.n = n, p.k = k, p.ldx = a.x.stride, p.ldw = a.w.stride, p.ldy = a.y.stride;
    p.lds = grouping.lds, p.group = grouping.group;
    p.x_type = x_type, p.y_type = y_type, p.bias_type = a.bias.type;
    multiply(a);
    return a;
}

/* 1 when the NaNs, or an infinity, are not where they should be. */
static double relative_error(const Buffer &y, const Problem &a) {
    double error = 0.0, norm = 0.0;
    for (int64_t i = 0; i < y.rows; i++)
        for (int64_t r = 0; r < y.columns; r++) {
            const double value = (double)y.at(i, r), scalar = (double)a.y.at(i, r);
            const double exact = a.exact[(size_t)(i * y.columns + r)];
            if (std::isfinite(scalar)) {
                error += (value - exact) * (value - exact);
                norm += exact * exact;
            } else if (std::isnan(scalar) ? !std::isnan(value) : value != scalar)
                return 1.0;
        }
    return norm > 0.0 ? sqrt(error / norm) : error;
}

static void compare(const Problem &a, const Grouping &grouping, const char *what) {
    const double tolerance = a.y.type == BT_F32 ? 1e-5 : a.y.type == BT_F16 ? 6e-4 : 5e-3;
    bt_ternary_linear_packed p = a.p;
    /* cuda_unpack is no kernel: csrc/dispatch does its work. */
    const uint32_t lacks = bt_tensor_lacks(p.m, 1, p.k, p.ldw, p.w, p.group) | BT_GPU_UNPACK;
    const auto workspace_bytes = (int64_t)bt_ternary_linear_packed_cuda_workspace(&p);
    for (const auto &kernel : KERNELS) {
        const Buffer first(a.y.type, p.m, p.n, p.ldy);
        bool is_first = true;
        for_orders([&](const char *order) {
            const Buffer y(a.y.type, p.m, p.n, p.ldy);
            const Buffer workspace(BT_I8, 1, workspace_bytes, workspace_bytes);
            p.y = y.data();
            p.workspace = workspace.data();
            p.workspace_bytes = workspace_bytes;
            const bt_status status = kernel.run(&p, 0, 0);
            if (((kernel.needs & lacks) || !(kernel.dtypes & BT_SET(p.x_type))) && p.m > 0 && p.n > 0) {
                check(status == BT_ERR_PROBLEM && y.untouched(), "ternary_linear_packed %s refuses what it lacks, %x",
                      kernel.variant, lacks);
                return;
            }
            const double error = relative_error(y, a);
            if (is_first)
                memcpy(first.data(), y.data(), y.bytes);
            is_first = false;
            check(status == BT_OK && error <= tolerance && y.gaps_intact() && y.equals(first),
                  "ternary_linear_packed %s m=%ld n=%ld k=%ld %s->%s bias %s %s/%ld %s %s: error %g", kernel.variant,
                  (long)p.m, (long)p.n, (long)p.k, type_name(p.x_type), type_name(p.y_type),
                  p.bias ? type_name(p.bias_type) : "none", grouping.name, (long)grouping.group, what, order, error);
        });
    }
}

static void shape(Random &random, int64_t m, int64_t n, int64_t k) {
    for (const auto &grouping : groupings(n, k)) {
        const int x_type = (int)random.below(3), bias_type = (int)random.below(4) - 1;
        compare(make(random, m, n, k, grouping, x_type, BT_F32, bias_type, k + random.below(3),
                     bt_div_up(k, 4) + random.below(3)),
                grouping, "random");
    }
}

/* Rows of w at multiples of 16 bytes, as the tensor-core kernels want them; rows of x anywhere, or at such too. */
static void aligned(Random &random, int64_t m, int64_t n, int64_t k, const Grouping &grouping, int x_type = BT_F32) {
    x_type = x_type == BT_F32 ? (int)BT_F16 + (int)random.below(2) : x_type; /* BT_F32: any */
    const int y_type = random.below(2) ? (int)BT_F32 : x_type;
    const int64_t ldx = random.below(2) ? k + random.below(3) : bt_div_up(k, 8) * 8;
    compare(make(random, m, n, k, grouping, x_type, y_type, (int)random.below(4) - 1, ldx,
                 bt_div_up(k, 64) * 16 + 16 * random.below(2)),
            grouping, "aligned");
}

static void skinny(Random &random) {
    for (const int64_t m : {1, 2, 3, 5, 8, 9, 15, 16})
        for (const int64_t n : {1, 16, 35}) {
            const int64_t k = 1 + random.below(600);
            aligned(random, m, n, k, {"channel", 1, k, n});
        }
    for (const int64_t k : {1, 15, 63, 64, 65, 255, 256, 257, 1024, 2049})
        aligned(random, 1 + random.below(8), 17, k, {"tensor", 0, k, 1});
    /* More columns of k than lie in shared memory at once, and several parts of k. */
    aligned(random, 7, 20, 4100, {"channel", 1, 4100, 20});
    for (const int type : {BT_F16, BT_BF16}) {
        aligned(random, 16, 40, 2200, {"channel", 1, 2200, 40}, type);
        aligned(random, 3, 20, 8200, {"channel", 1, 8200, 20}, type);
        /* More tiles of rows than blocks. */
        aligned(random, 5, 70, 700, {"channel", 1, 700, 70}, type);
        aligned(random, 12, 130, 700, {"tensor", 0, 700, 1}, type);
        /* Every end of a row. */
        for (int64_t k = 256; k < 528; k += 17)
            for (const int64_t m : {2, 12})
                aligned(random, m, 17, k, {"channel", 1, k, 17}, type);
        for (const int64_t group : {64, 128, 192, 256, 320, 512, 1024})
            for (const int64_t m : {1 + random.below(8), 9 + random.below(8)}) {
                const int64_t groups = 2 + random.below(1600 / group + 1), k = groups * group, n = 1 + random.below(20);
                aligned(random, m, n, k, {"group", groups, group, n * groups}, type);
            }
    }
    aligned(random, 4, 49, 64 * 39, {"group", 39, 64, 49 * 39});
}

static void all_types(Random &random) {
    const Grouping channel = {"channel", 1, 69, 6};
    for (int x_type = BT_F32; x_type <= BT_BF16; x_type++)
        for (int y_type = BT_F32; y_type <= BT_BF16; y_type++)
            for (int bias_type = -1; bias_type <= BT_BF16; bias_type++)
                for (const int64_t ldw : {19, 32})
                    compare(make(random, 3, 6, 69, channel, x_type, y_type, bias_type, 70, ldw), channel, "types");
}

/* A zero code times Inf is NaN, so a token with Inf or NaN shows in every output. */
static void special(Random &random, int type, int64_t ldw) {
    const Grouping channel = {"channel", 1, 130, 40};
    Problem a = make(random, 5, 40, 130, channel, type, BT_F32, BT_F32, 132, ldw);
    a.x.put(1, 129, INFINITY);
    a.x.put(2, 70, NAN);
    a.x.put(4, 0, -INFINITY);
    multiply(a);
    int finite = 0;
    for (int64_t r = 0; r < 40; r++)
        finite += std::isfinite(a.y.at(1, r)) + std::isfinite(a.y.at(2, r)) + std::isfinite(a.y.at(4, r));
    check(finite == 0, "ternary_linear_packed: the scalar spreads Inf and NaN");
    compare(a, channel, "special");
}

/* Tensor cores sum doubled products: the contract ends at half the largest float, the other kernels go on. */
static void huge(Random &random, float value) {
    const Grouping channel = {"channel", 1, 64, 40};
    Problem a = make(random, 3, 40, 64, channel, BT_BF16, BT_F32, -1, 64, 16);
    for (int64_t c = 0; c < 64; c++)
        a.x.put(1, c, c == 5 ? value : 0.0f);
    for (int64_t r = 0; r < 40; r++)
        a.scale.put(0, r, 0.25f);
    multiply(a);
    if (value < 1.7e38f)
        return compare(a, channel, "huge");
    for (const auto &kernel : KERNELS) {
        const Buffer y(BT_F32, 3, 40, a.p.ldy);
        a.p.y = y.data();
        if ((kernel.needs & BT_GPU_UNPACK) || !(kernel.dtypes & BT_SET(BT_BF16)) || kernel.run(&a.p, 0, 0) != BT_OK)
            continue;
        int wrong = 0;
        for (int64_t r = 0; r < 40; r++) {
            const bool overflows = (kernel.needs & BT_GPU_SM80) && trit_at(a.w, r, 5);
            wrong += std::isfinite(y.at(1, r)) == overflows || !std::isfinite(y.at(0, r)) || !std::isfinite(y.at(2, r));
        }
        check(wrong == 0, "ternary_linear_packed %s: %d outputs of a huge activation", kernel.variant, wrong);
    }
}

/* Activations and outputs at the bounds of half types. Where x is zero an output is its bias. */
static void bounds(Random &random, int64_t m, int64_t k, const Grouping &grouping) {
    for (const int x_type : {BT_F16, BT_BF16})
        for (const int y_type : {BT_F16, BT_BF16}) {
            const int64_t n = grouping.scales / (k / grouping.group);
            Problem a = make(random, m, n, k, grouping, x_type, y_type, y_type == BT_F16 ? BT_F32 : BT_F16,
                             bt_div_up(k, 8) * 8, bt_div_up(k, 64) * 16);
            for (int64_t i = 0; i < m * k; i++)
                a.x.put(i / k, i % k, i / k % 3 == 1 ? HALF_BOUNDS[i % 2] : 0.0f);
            for (int64_t i = 2; i < m; i += 3)
                a.x.put(i, random.below(k), HALF_BOUNDS[2]);
            for (int64_t r = 0; r < n; r++)
                a.bias.put(0, r, HALF_BOUNDS[r % 5]);
            multiply(a);
            compare(a, grouping, "bounds");
        }
}

static void all_bounds(Random &random) {
    for (const int64_t m : {5, 12, 36, 64, 128})
        bounds(random, m, 130, {"channel", 1, 130, 40});
    for (const int64_t group : {64, 128, 256})
        for (const int64_t m : {5, 12, 36})
            if (m < 36 || group == 64)
                bounds(random, m, 2 * group, {"group", 2, group, 80});
}

/* More tokens than one tile, tiles that are not full, one stage and more than are under way, several parts of k, blocks
 * of 256 rows, long groups. */
static void bulk(Random &random) {
    for (const int type : {BT_F16, BT_BF16}) {
        aligned(random, 32, 20, 600, {"channel", 1, 600, 20}, type);
        aligned(random, 64, 30, 500, {"channel", 1, 500, 30}, type);
        aligned(random, 128, 20, 500, {"channel", 1, 500, 20}, type);
        /* The last token and row at every place of a lane. */
        for (int64_t at = 0; at < 8; at++)
            aligned(random, 34 + at / 2 * 8 + at % 2, 4 + at * 8, 128, {"group", 2, 64, 2 * (4 + at * 8)}, type);
    }
    aligned(random, 17, 140, 300, {"channel", 1, 300, 140}, BT_F16);
    aligned(random, 66, 9, 130, {"tensor", 0, 130, 1}, BT_BF16);
    aligned(random, 64, 150, 64, {"channel", 1, 64, 150}, BT_BF16);
    aligned(random, 34, 260, 70, {"channel", 1, 70, 260}, BT_BF16);
    aligned(random, 180, 17, 130, {"tensor", 0, 130, 1}, BT_F16);
    aligned(random, 18, 5, 4160, {"channel", 1, 4160, 5}, BT_BF16);
    aligned(random, 37, 20, 960, {"group", 15, 64, 300}, BT_F16);
    aligned(random, 20, 20, 320, {"group", 5, 64, 100}, BT_BF16);
    aligned(random, 35, 20, 256, {"group", 2, 128, 40}, BT_F16);
    aligned(random, 3, 20, 3072, {"group", 2, 1536, 40}, BT_BF16);
    aligned(random, 33, 9, 768, {"group", 3, 256, 27}, BT_F16);
}

void test_linear_packed() {
    Random random(4);
    for (const int64_t size : SIZES) {
        shape(random, size, 5, 33);
        shape(random, 3, size, 65);
        shape(random, 2, 33, size);
    }
    shape(random, 33, 65, 257);
    shape(random, 5, 67, 260);
    shape(random, 4, 6, 256);
    all_types(random);
    huge(random, 1.6e38f);
    huge(random, 2e38f);
    for (int type = BT_F32; type <= BT_BF16; type++)
        for (const int64_t ldw : {33, 48})
            special(random, type, ldw);
    all_bounds(random);
    skinny(random);
    bulk(random);
}
