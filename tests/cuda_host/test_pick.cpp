/* Which kernel a product gets: a table of what was decided, the edges of every need, and names before needs. */
#include "../../csrc/dispatch/kernel_table.h"
#include "test.h"

#include <string>

/* The table names every CPU kernel; only the scalar ones are linked, and here none is called. */
#define STUB_ON_BT_CPU(op, variant)                                                                                    \
    extern "C" __attribute__((weak)) bt_status bt_##op##_##variant(const bt_##op *, int64_t, int64_t) {                \
        return BT_ERR_PROBLEM;                                                                                         \
    }
#define STUB_ON_BT_GPU(op, variant)
#define STUB(op, device, dtypes, variant, needs) STUB_ON_##device(op, variant)
#define STUBS(op, list) list(STUB)
BT_OPS(STUBS)

static bt_problem product(int64_t m, int64_t n, int64_t k) {
    bt_problem p = {};
    p.m = m, p.n = n, p.k = p.group = k;
    p.ldw = bt_div_up(k, 4);
    p.digits = 1;
    p.halves = 1;
    p.sm = 90;
    return p;
}

static std::string pick(bt_op op, int dtype, const bt_problem *problem, const char *name = nullptr) {
    const bt_kernel *kernel = bt_pick(op, BT_GPU, dtype, problem, name);
    return kernel ? kernel->variant : "none";
}

static void expect(bt_op op, int dtype, const bt_problem &p, const char *variant) {
    const std::string picked = pick(op, dtype, &p);
    check(picked == variant, "bt_pick: %s %s m=%ld n=%ld k=%ld ldw=%ld group=%ld digits=%d sm_%d: %s, not %s",
          bt_op_name(op), type_name(dtype), (long)p.m, (long)p.n, (long)p.k, (long)p.ldw, (long)p.group, p.digits, p.sm,
          picked.c_str(), variant);
}

/* The products that have a kernel for few columns, and the type of their activations. */
static const struct {
    bt_op op;
    int dtype;
} SKINNY[] = {
    {BT_OP_ternary_linear_w2a8, BT_I8}, {BT_OP_ternary_linear_packed, BT_F16}, {BT_OP_ternary_linear_packed, BT_BF16}};

static void needs() {
    for (const auto &[op, dtype] : SKINNY) {
        for (const int64_t m : {0, 1, 8, 9, 16})
            expect(op, dtype, product(m, 4096, 4096), "cuda_skinny");
        for (const int64_t m : {17, 64, 1023})
            expect(op, dtype, product(m, 4096, 4096), "cuda_bulk");
        for (const int sm : {80, 87, 89, 90, 100, 120}) {
            bt_problem p = product(1, 2560, 6912);
            p.sm = sm;
            expect(op, dtype, p, "cuda_skinny");
        }
        for (const int sm : {53, 70, 75}) {
            bt_problem p = product(1, 2560, 6912);
            p.sm = sm;
            expect(op, dtype, p, "cuda_tiled");
        }
        for (const int64_t n : {0, 1, 3, 4097})
            expect(op, dtype, product(2, n, 128), "cuda_skinny");
        /* Contiguous rows are aligned where k is a multiple of 64; padded rows are for every k but 0. */
        for (const int64_t k : {0, 1, 60, 65, 2570})
            expect(op, dtype, product(1, 100, k), "cuda_tiled");
        for (const int64_t k : {1, 60, 65, 2570}) {
            bt_problem p = product(1, 100, k);
            p.ldw = bt_div_up(k, 64) * 16;
            expect(op, dtype, p, "cuda_skinny");
            p.w = (const char *)nullptr + 8;
            expect(op, dtype, p, "cuda_tiled");
        }
        for (const int64_t group : {64, 128, 192, 256, 1024}) {
            bt_problem p = product(4, 4096, 3072);
            p.group = group;
            expect(op, dtype, p, "cuda_skinny");
        }
        for (const int64_t group : {4, 32, 96}) {
            bt_problem p = product(4, 4096, 3072);
            p.group = group;
            expect(op, dtype, p, "cuda_tiled");
        }
        bt_problem few = product(4, 4096, 3072), many = product(40, 4096, 3072);
        few.group = many.group = 1536;
        expect(op, dtype, few, "cuda_bulk");
        expect(op, dtype, many, "cuda_bulk");
        bt_problem longest = product(40, 100, 1 << 20); /* groups whose sums int32 may not hold */
        longest.group = 1 << 17;
        expect(op, dtype, longest, "cuda_bulk");
        longest.group = 1 << 18;
        expect(op, dtype, longest, "cuda_tiled");
        many.group = 64;
        expect(op, dtype, many, "cuda_bulk");
    }
    for (const int digits : {1, 2, 3})
        for (int64_t m = 1; m < 20; m++) {
            bt_problem p = product(m, 4096, 4096);
            p.digits = digits;
            expect(BT_OP_ternary_linear_w2a8, BT_I8, p, digits * m <= 16 ? "cuda_skinny" : "cuda_bulk");
            p.group = 64;
            const char *const grouped = digits == 1 ? "cuda_bulk" : "cuda_tiled"; /* digits do not meet in a group */
            expect(BT_OP_ternary_linear_w2a8, BT_I8, p, digits * m <= 16 ? "cuda_skinny" : grouped);
        }
    expect(BT_OP_ternary_linear_packed, BT_F32, product(1, 4096, 4096), "cuda_tiled");
}

/* Where the weight is decoded and cuBLAS multiplies: many tokens where mma.sync is not all that a device has, and from
 * 64 on where tensor cores do not take the problem. */
static void decoded() {
    const bt_op packed = BT_OP_ternary_linear_packed;
    for (const int dtype : {(int)BT_F16, (int)BT_BF16}) {
        for (const int64_t m : {1024, 100000})
            expect(packed, dtype, product(m, 4096, 4096), "cuda_unpack");
        for (const int sm : {80, 87, 89, 90, 100, 120}) {
            bt_problem p = product(4096, 4096, 4096);
            p.sm = sm;
            expect(packed, dtype, p, sm == 90 || sm == 100 ? "cuda_unpack" : "cuda_bulk");
            p.sm = 75;
            expect(packed, dtype, p, "cuda_unpack");
        }
        for (const int64_t m : {1, 63, 64, 5000}) {
            bt_problem odd = product(m, 100, 2570), groups = product(m, 100, 2560);
            groups.group = 32;
            expect(packed, dtype, odd, m < 64 ? "cuda_tiled" : "cuda_unpack");
            expect(packed, dtype, groups, m < 64 ? "cuda_tiled" : "cuda_unpack");
        }
    }
    for (const int64_t m : {0, 1, 63, 64, 5000}) {
        bt_problem p = product(m, 4096, 4096);
        p.halves = 0;
        expect(packed, BT_F32, p, m < 64 ? "cuda_tiled" : "cuda_unpack");
    }
    expect(BT_OP_ternary_linear_w2a8, BT_I8, product(100000, 4096, 4096), "cuda_bulk");
    const bt_problem few = product(1, 64, 64);
    check(pick(packed, BT_F16, &few, "unpack") == "cuda_unpack", "bt_pick: by name, whether it pays or not");
    check(pick(packed, BT_F16, &few, "?unpack") == "cuda_skinny", "bt_pick: a wish that does not pay");
}

static void names() {
    const bt_op op = BT_OP_ternary_linear_packed;
    const bt_problem few = product(1, 64, 64), many = product(17, 64, 64);
    check(pick(op, BT_F16, nullptr) == "cuda_tiled", "bt_pick: without a problem, a kernel for every one");
    check(pick(op, BT_F16, nullptr, "cuda_skinny") == "cuda_skinny", "bt_pick: a name without a problem");
    check(pick(op, BT_F16, &few, "baseline") == "cuda_baseline", "bt_pick: a role");
    check(pick(op, BT_F16, &few, "skinny") == "cuda_skinny", "bt_pick: a name without its device");
    check(pick(op, BT_F16, &many, "cuda_skinny") == "none", "bt_pick: a name that does not take the problem");
    check(pick(op, BT_F32, &few, "cuda_skinny") == "none", "bt_pick: a name that does not take the type");
    check(pick(op, BT_F16, &few, "nonsense") == "none", "bt_pick: no such name");
    check(pick(op, BT_F16, &many, "?cuda_skinny") == "cuda_bulk", "bt_pick: a wish that does not take the problem");
    check(pick(op, BT_F16, &few, "?baseline") == "cuda_baseline", "bt_pick: a wish");

    check(bt_kernel_set_default(op, "cuda_baseline") && pick(op, BT_F16, &few) == "cuda_baseline", "a default");
    check(bt_kernel_set_default(op, "cuda_skinny") && pick(op, BT_F16, &many) == "cuda_bulk" &&
              pick(op, BT_F16, &few) == "cuda_skinny",
          "bt_pick: a default counts where it takes the problem");
    check(bt_kernel_set_default(op, nullptr), "no default");

    check(bt_kernel_force(op, "cuda_skinny") && pick(op, BT_F16, &few) == "cuda_skinny", "bt_pick: forced");
    check(pick(op, BT_F16, &many) == "none" && pick(op, BT_F16, &many, "?baseline") == "none",
          "bt_pick: a forced kernel that does not take the problem is an error");
    check(bt_kernel_demanded(op, BT_GPU, BT_F16, "auto") == bt_pick(op, BT_GPU, BT_F16, nullptr, "cuda_skinny"),
          "bt_kernel_demanded: the forced kernel");
    check(pick(op, BT_F16, &many, "tiled") == "cuda_tiled", "bt_pick: the name in the call comes first");
    check(pick(op, BT_F32, &many) == "cuda_tiled", "bt_pick: forced where the type has no such kernel");
    check(bt_kernel_force(op, nullptr) && pick(op, BT_F16, &many) == "cuda_bulk", "bt_pick: no longer forced");

    for (uint32_t bit = 1; bit; bit <<= 1)
        if (bit & BT_GPU_NEEDS)
            for (uint32_t other = 1; other < bit; other <<= 1)
                check(!(other & BT_GPU_NEEDS) || strcmp(bt_need_text(bit), bt_need_text(other)) != 0, "bt_need_text");
    for (int i = 0; i < bt_kernel_count; i++)
        check(bt_kernels[i].device == BT_GPU || !(bt_kernels[i].needs & BT_GPU_NEEDS), "needs of %s",
              bt_kernels[i].variant);
}

void test_pick() {
    needs();
    decoded();
    names();
}
