/* ternary_linear_w2a8: the bytes of the scalar kernel. */
#include "../../csrc/kernels/act_quantize.h"
#include "../../csrc/kernels/ternary_linear_w2a8.h"
#include "test.h"

#include <vector>

static const Kernel<bt_ternary_linear_w2a8_fn> KERNELS[] = {BT_TERNARY_LINEAR_W2A8(GPU_KERNEL)};

/* The codes of q in planes and their sums, as the scalar kernel wants them. */
static Buffer in_planes(const Buffer &q, const Buffer &sum) {
    const int64_t ldq = bt_div_up(q.columns, BT_ACT_BLOCK) * BT_ACT_BLOCK;
    Buffer planes(BT_I8, q.rows, ldq, ldq);
    bt_act_quantize p = {};
    p.x = q.data();
    p.q = planes.data<int8_t>();
    p.sum = sum.data<int32_t>();
    p.m = q.rows, p.k = q.columns, p.ldx = q.stride, p.ldq = ldq;
    p.x_type = BT_I8, p.order = BT_ORDER_PLANES, p.digits = 1;
    bt_act_quantize_scalar(&p, 0, q.rows);
    return planes;
}

static void compare(bt_ternary_linear_w2a8 p, const Buffer &q, const Grouping &grouping, const char *what) {
    const Buffer expected(p.y_type, p.m, p.n, p.ldy), sum(BT_F32, 1, q.rows, q.rows), planes = in_planes(q, sum);
    p.q = planes.data<int8_t>();
    p.ldq = planes.stride;
    p.q_sum = sum.data<int32_t>();
    p.y = expected.data();
    bt_ternary_linear_w2a8_scalar(&p, 0, bt_tiles(p.m, p.n));
    p.q = q.data<int8_t>();
    p.ldq = q.stride;
    p.q_sum = nullptr;
    const int64_t ordered_columns = bt_quantized_width(p.k, BT_ORDER_STRIDE4);
    const Buffer ordered(BT_I8, q.rows, ordered_columns, ordered_columns); /* the same with stride 4 */
    memset(ordered.data(), 0, ordered.bytes);
    for (int64_t i = 0; i < q.rows; i++)
        for (int64_t c = 0; c < p.k; c++)
            ordered.data<int8_t>()[i * ordered_columns + bt_stride4_index(c)] = q.data<int8_t>()[i * q.stride + c];
    const uint32_t lacks = bt_tensor_lacks(p.m, p.digits, p.k, p.ldw, p.w, p.group);
    const auto workspace_bytes = (int64_t)bt_ternary_linear_w2a8_cuda_workspace(&p);
    for (const auto &kernel : KERNELS)
        for_orders([&](const char *order) {
            const Buffer y(p.y_type, p.m, p.n, p.ldy), workspace(BT_I8, 1, workspace_bytes, workspace_bytes);
            p.y = y.data();
            p.workspace = workspace.data();
            p.workspace_bytes = workspace_bytes;
            /* Under one order of threads with stride 4. */
            const bool stride4 = (kernel.needs & BT_READS_STRIDE4) && cusim::order == cusim::REVERSE;
            p.q = stride4 ? ordered.data<int8_t>() : q.data<int8_t>();
            p.ldq = stride4 ? ordered.stride : q.stride;
            p.q_order = stride4 ? BT_ORDER_STRIDE4 : BT_ORDER_NATURAL;
            const bt_status status = kernel.run(&p, 0, 0);
            if ((kernel.needs & lacks) && p.m > 0 && p.n > 0) {
                check(status == BT_ERR_PROBLEM && y.untouched(), "ternary_linear_w2a8 %s refuses what it lacks, %x",
                      kernel.variant, lacks);
                return;
            }
            check(status == BT_OK && y.equals(expected),
                  "ternary_linear_w2a8 %s m=%ld n=%ld k=%ld %s bias %s %s/%ld %s %s", kernel.variant, (long)p.m,
                  (long)p.n, (long)p.k, type_name(p.y_type), p.bias ? type_name(p.bias_type) : "none", grouping.name,
                  (long)grouping.group, what, order);
        });
}

static void shape(Random &random, int64_t m, int64_t n, int64_t k, const Grouping &grouping, int y_type, int bias_type,
                  int digits, int64_t ldq, int64_t ldw) {
    const Buffer q = random_int8(random, digits * m, k, ldq);
    const Buffer w = random_packed(random, n, k, ldw);
    const Buffer q_scale = random_floats(random, BT_F32, 1, m, m);
    const Buffer scale = random_floats(random, BT_F32, 1, grouping.scales, grouping.scales);
    const Buffer bias = random_floats(random, bias_type < 0 ? (int)BT_F32 : bias_type, 1, n, n);
    const Buffer q_step = buffer_of(std::vector<double>((size_t)m));
    for (int64_t i = 0; i < m; i++)
        q_step.data<double>()[i] = (double)q_scale.data<float>()[i] / 8355711.0;
    /* Where q is zero an output is its bias, which is put at the bounds of half types. */
    for (int64_t r = 0; r < n && y_type != BT_F32; r++)
        bias.put(0, r, HALF_BOUNDS[r % 5]);
    for (int64_t i = 0; i < digits * m && k > 0; i++)
        if (i / digits % 3 == 0 && y_type != BT_F32)
            memset(q.data<int8_t>() + i * q.stride, 0, (size_t)k);
    bt_ternary_linear_w2a8 p = {};
    p.digits = digits;
    p.q_scale = digits == 1 ? q_scale.data<float>() : nullptr;
    p.q_step = digits == 1 ? nullptr : q_step.data<double>();
    p.w = w.data<uint8_t>();
    p.scale = scale.data<float>();
    p.bias = bias_type < 0 ? nullptr : bias.data();
    p.m = m, p.n = n, p.k = k, p.ldw = w.stride, p.ldy = n + random.below(3);
    p.lds = grouping.lds, p.group = grouping.group;
    p.y_type = y_type, p.bias_type = bias.type;
    compare(p, q, grouping, "random");
}

static void shapes(Random &random, int64_t m, int64_t n, int64_t k) {
    for (const auto &grouping : groupings(n, k))
        for (int digits = 1; digits <= BT_MAX_DIGITS; digits++)
            shape(random, m, n, k, grouping, (int)random.below(3), (int)random.below(4) - 1, digits,
                  k + random.below(4), bt_div_up(k, 4) + random.below(3));
}

/* Rows of w at multiples of 16 bytes, as the tensor-core kernels want them; rows of q at any byte, or at such too. */
static void aligned(Random &random, int64_t m, int64_t n, int64_t k, const Grouping &grouping, int digits) {
    const int64_t ldq = random.below(2) ? k + random.below(4) : bt_div_up(k, 16) * 16;
    shape(random, m, n, k, grouping, (int)random.below(3), (int)random.below(4) - 1, digits, ldq,
          bt_div_up(k, 64) * 16 + 16 * random.below(2));
}

static void skinny(Random &random) {
    for (const int64_t m : {1, 2, 5, 8, 9, 16})
        for (const int64_t n : {1, 16, 35})
            for (int digits = 1; digits * m <= BT_SKINNY_COLUMNS && digits <= BT_MAX_DIGITS; digits++) {
                const int64_t k = 1 + random.below(600);
                aligned(random, m, n, k, {"channel", 1, k, n}, digits);
            }
    for (const int64_t k : {1, 15, 63, 64, 65, 255, 256, 257, 1024, 2049})
        aligned(random, 1 + random.below(8), 17, k, {"tensor", 0, k, 1}, 1);
    /* More columns of k than lie in shared memory at once, and several parts of k. */
    aligned(random, 16, 65, 4200, {"channel", 1, 4200, 65}, 1);
    aligned(random, 8, 20, 4200, {"channel", 1, 4200, 20}, 1);
    aligned(random, 4, 20, 8192, {"channel", 1, 8192, 20}, 2);
    aligned(random, 3, 40, 8200, {"channel", 1, 8200, 40}, 3);
    /* More tiles of rows than blocks. */
    aligned(random, 5, 70, 700, {"channel", 1, 700, 70}, 1);
    aligned(random, 12, 130, 700, {"tensor", 0, 700, 1}, 1);
    /* Every end of a row. */
    for (int64_t k = 256; k < 528; k += 17)
        for (const int64_t m : {2, 12})
            aligned(random, m, 17, k, {"channel", 1, k, 17}, 1);
    for (const int64_t group : {64, 128, 192, 256, 320, 512, 1024})
        for (int digits = 1; digits <= BT_MAX_DIGITS; digits++) {
            const int64_t groups = 2 + random.below(1600 / group + 1), k = groups * group;
            const int64_t n = 1 + random.below(20), m = 1 + random.below(BT_SKINNY_COLUMNS / digits);
            aligned(random, m, n, k, {"group", groups, group, n * groups}, digits);
        }
    /* Several rounds of groups, for each number of tiles of columns. */
    for (const int64_t m : {1, 8, 9, 16})
        aligned(random, m, 49, 64 * 39, {"group", 39, 64, 49 * 39}, 1);
}

/* One output of one code, whose fused epilogue differs from the rounded one: 37 * fl(0.1 * 0.3) + 0.7. */
static void fused(void) {
    const Grouping tensor = {"tensor", 0, 1, 1};
    const Buffer q(BT_I8, 1, 1, 1);
    *q.data<int8_t>() = 37;
    const Buffer plus_one = buffer_of<uint8_t>({1}), q_scale = buffer_of<float>({0.1f});
    const Buffer scale = buffer_of<float>({0.3f}), bias = buffer_of<float>({0.7f}), y(BT_F32, 1, 1, 1);
    const float product = 0.1f * 0.3f, rounded = 37.0f * product + 0.7f;
    check(fmaf(37.0f, product, 0.7f) != rounded, "ternary_linear_w2a8: the vector tells fused from rounded");
    bt_ternary_linear_w2a8 p = {};
    p.digits = 1;
    p.q_scale = q_scale.data<float>();
    p.w = plus_one.data<uint8_t>();
    p.scale = scale.data<float>();
    p.bias = bias.data();
    p.m = p.n = p.k = p.ldw = p.ldy = p.group = 1;
    p.y_type = p.bias_type = BT_F32;
    compare(p, q, tensor, "fused");
    p.q = q.data<int8_t>();
    p.ldq = 1;
    p.y = y.data();
    for (const auto &kernel : KERNELS) {
        if (kernel.needs)
            continue; /* one byte is no aligned row */
        kernel.run(&p, 0, 0);
        check(y.at(0, 0) == rounded, "ternary_linear_w2a8 %s: the epilogue is not fused", kernel.variant);
    }
}

/* More columns than one tile, tiles that are not full, digits that a tile keeps together, one stage and more than are
 * under way, blocks of 256 rows, long groups. */
static void bulk(Random &random) {
    aligned(random, 32, 20, 600, {"channel", 1, 600, 20}, 1);
    aligned(random, 17, 140, 300, {"channel", 1, 300, 140}, 1);
    aligned(random, 66, 9, 130, {"tensor", 0, 130, 1}, 1);
    aligned(random, 40, 30, 1100, {"channel", 1, 1100, 30}, 1);
    aligned(random, 64, 150, 64, {"channel", 1, 64, 150}, 1);
    aligned(random, 100, 20, 600, {"channel", 1, 600, 20}, 1);
    aligned(random, 34, 260, 70, {"channel", 1, 70, 260}, 1);
    aligned(random, 50, 20, 300, {"channel", 1, 300, 20}, 2);
    aligned(random, 20, 40, 200, {"channel", 1, 200, 40}, 3);
    aligned(random, 37, 20, 960, {"group", 15, 64, 300}, 1);
    aligned(random, 40, 17, 513, {"channel", 1, 513, 17}, 2);
    aligned(random, 23, 20, 64, {"channel", 1, 64, 20}, 3);
    aligned(random, 18, 5, 4160, {"channel", 1, 4160, 5}, 1);
    aligned(random, 9, 5, 2100, {"channel", 1, 2100, 5}, 2);
    aligned(random, 20, 20, 320, {"group", 5, 64, 100}, 1);
    aligned(random, 35, 20, 256, {"group", 2, 128, 40}, 1);
    aligned(random, 3, 20, 3072, {"group", 2, 1536, 40}, 1);
    aligned(random, 33, 9, 768, {"group", 3, 256, 27}, 1);
    /* The last token and row at every place of a lane. */
    for (int64_t at = 0; at < 8; at++)
        aligned(random, 34 + at / 2 * 8 + at % 2, 4 + at * 8, 128, {"group", 2, 64, 2 * (4 + at * 8)}, 1);
}

/* The extremes of the sums, and a scale that is NaN. */
static void extremes(Random &random, int64_t k, int64_t ldw) {
    const Grouping channel = {"channel", 1, k, 3};
    const int8_t values[] = {-128, 127};
    const Buffer w = random_packed(random, 3, k, ldw);
    memset(w.data(), 0x55, (size_t)(k / 4)); /* +1 */
    memset(w.data<uint8_t>() + ldw, 0xaa, (size_t)(k / 4));
    const Buffer q_scale = buffer_of<float>({1.0f, 0.01f, NAN}), scale = buffer_of<float>({1.0f, 0.3f, 0.7f});
    for (const int8_t value : values) {
        const Buffer q(BT_I8, 3, k, k + 1);
        for (int64_t i = 0; i < 3 * k; i++)
            q.data<int8_t>()[i / k * (k + 1) + i % k] = value;
        bt_ternary_linear_w2a8 p = {};
        p.digits = 1;
        p.q_scale = q_scale.data<float>();
        p.w = w.data<uint8_t>();
        p.scale = scale.data<float>();
        p.m = p.n = 3, p.k = p.group = k, p.ldw = ldw, p.ldy = 3, p.lds = 1;
        compare(p, q, channel, "extremes");
    }
}

/* A launcher refuses too small a workspace; the parts of k keep int32 from overflowing. */
static void parts(Random &random) {
    const Buffer q = random_int8(random, 1, 8192, 8192), w = random_packed(random, 5, 8192, 2048), y(BT_F32, 1, 5, 5);
    const float one = 1.0f;
    char workspace[8];
    bt_ternary_linear_w2a8 p = {};
    p.digits = 1;
    p.q = q.data<int8_t>();
    p.w = w.data<uint8_t>();
    p.q_scale = p.scale = &one;
    p.y = y.data();
    p.m = 1, p.n = 5, p.k = p.group = p.ldq = 8192, p.ldw = 2048, p.ldy = 5;
    p.workspace = workspace;
    p.workspace_bytes = sizeof workspace;
    const bt_status status = bt_ternary_linear_w2a8_cuda_skinny(&p, 0, 0);
    check(status == BT_ERR_WORKSPACE && y.untouched(), "ternary_linear_w2a8 cuda_skinny: too small a workspace");
    for (int64_t columns = 1; columns <= BT_SKINNY_COLUMNS; columns++)
        for (int64_t k = 1; k <= BT_W2A8_MAX_K; k += 1 + k / 3)
            for (const int64_t n : {1, 1000, 5000, 100000}) {
                const int64_t warps = columns <= 8 ? 8 : 4, steps = bt_div_up(k, 256);
                const int64_t of_a_warp = bt_div_up(bt_div_up(steps, bt_skinny_parts(columns, n, k)), warps);
                check(of_a_warp * 256 * 64 * 128 <= INT32_MAX, "bt_skinny_parts: columns %ld n %ld k %ld",
                      (long)columns, (long)n, (long)k);
            }
}

void test_linear_w2a8() {
    Random random(5);
    for (const int64_t size : SIZES) {
        shapes(random, size, 5, 33);
        shapes(random, 3, size, 65);
        shapes(random, 2, 33, size);
    }
    shapes(random, 33, 65, 257);
    shapes(random, 5, 67, 260);
    shapes(random, 4, 6, 256);
    for (int y_type = BT_F32; y_type <= BT_BF16; y_type++)
        for (int bias_type = -1; bias_type <= BT_BF16; bias_type++)
            for (const int64_t ldw : {19, 32})
                shape(random, 3, 6, 69, {"channel", 1, 69, 6}, y_type, bias_type, 1, 70, ldw);
    fused();
    extremes(random, 1032, 258);
    extremes(random, 1032, 272);
    extremes(random, 40000, 10000);
    skinny(random);
    bulk(random);
    parts(random);
}
