/* Sizes that no test could run: which launches they lead to, and addresses past 2^31 bytes. */
#include "../../csrc/kernels/kernel_list.h"
#include "../cuda_host/test.h"
#include "stub.h"

#include <sys/mman.h>

/* Every launcher at sizes up to 2^33: it gives a launch that a device accepts, or refuses. Nothing is executed. */
static void expect(bt_status status, const char *kernel, int64_t m, int64_t n, int64_t k) {
    check(status == BT_OK || status == BT_ERR_PROBLEM, "%s m=%ld n=%ld k=%ld: status %d", kernel, (long)m, (long)n,
          (long)k, status);
}

static void products(int64_t m, int64_t n, int64_t k, int64_t group, int digits, void *memory) {
    bt_ternary_linear_w2a8 p = {};
    p.q = (int8_t *)memory, p.w = (uint8_t *)memory, p.q_scale = p.scale = (float *)memory, p.q_step = (double *)memory;
    p.y = p.workspace = memory;
    p.m = m, p.n = n, p.k = k, p.ldq = bt_div_up(k, 16) * 16, p.ldw = bt_div_up(k, 64) * 16, p.ldy = n;
    p.group = group, p.lds = k / group, p.digits = digits;
    p.workspace_bytes = (int64_t)bt_ternary_linear_w2a8_cuda_workspace(&p);
    static const Kernel<bt_ternary_linear_w2a8_fn> codes[] = {BT_TERNARY_LINEAR_W2A8(GPU_KERNEL)};
    for (const auto &kernel : codes)
        expect(kernel.run(&p, 0, 0), kernel.variant, m, n, k);
    bt_ternary_linear_packed f = {};
    f.x = memory, f.w = p.w, f.scale = p.scale, f.y = f.workspace = memory;
    f.m = m, f.n = n, f.k = k, f.ldx = p.ldq, f.ldw = p.ldw, f.ldy = n, f.group = group, f.lds = p.lds;
    f.x_type = BT_F16 + digits % 2;
    f.workspace_bytes = (int64_t)bt_ternary_linear_packed_cuda_workspace(&f);
    static const Kernel<bt_ternary_linear_packed_fn> halves[] = {BT_TERNARY_LINEAR_PACKED(GPU_KERNEL)};
    for (const auto &kernel : halves)
        expect(kernel.run(&f, 0, 0), kernel.variant, m, n, k);
}

static void others(int64_t n, int64_t k, void *memory) {
    const int64_t bytes = bt_div_up(k, 4);
    const bt_ternary_pack pack = {(int8_t *)memory, (uint8_t *)memory, n, k, k, bytes, nullptr};
    expect(bt_ternary_pack_cuda_baseline(&pack, 0, 0), "pack", 0, n, k);
    const bt_ternary_check legal = {(uint8_t *)memory, (int64_t *)memory, n, k, bytes, nullptr};
    expect(bt_ternary_check_cuda_baseline(&legal, 0, 0), "check", 0, n, k);
    const bt_ternary_transpose across = {(uint8_t *)memory, (uint8_t *)memory, n, k, bytes, bt_div_up(n, 4), nullptr};
    expect(bt_ternary_transpose_cuda_baseline(&across, 0, 0), "transpose", 0, n, k);
    bt_trit_elementwise each = {};
    each.a = each.b = each.y = (uint8_t *)memory, each.n = n, each.k = k, each.lda = each.ldb = each.ldy = bytes;
    each.function = BT_TRIT_add;
    expect(bt_trit_elementwise_cuda_baseline(&each, 0, 0), "trit_elementwise", 0, n, k);
    bt_trit_reduce counts = {};
    counts.a = (uint8_t *)memory, counts.counts = (int64_t *)memory, counts.n = n, counts.k = k, counts.lda = bytes;
    if ((double)n * (double)k < 0x1p62)
        expect(bt_trit_reduce_cuda_baseline(&counts, 0, 0), "trit_reduce", 0, n, k);
    const int64_t blocks = bt_div_up(k, BT_PLANE_TRITS);
    const bt_bitplane_pack planes = {
        (uint8_t *)memory, (uint8_t *)memory, n, k, bytes, blocks * BT_PLANE_BLOCK_BYTES, nullptr};
    expect(bt_bitplane_pack_cuda_baseline(&planes, 0, 0), "bitplane_pack", 0, n, k);
    bt_bitplane_matmul trits = {};
    trits.a = trits.b = (uint8_t *)memory, trits.y = (int32_t *)memory, trits.m = trits.n = trits.ldy = n;
    trits.blocks = blocks, trits.lda = trits.ldb = blocks * BT_PLANE_BLOCK_BYTES;
    expect(bt_bitplane_matmul_cuda_baseline(&trits, 0, 0), "bitplane_matmul", n, n, k);
    for (int type = BT_F32; type <= BT_I8; type++) {
        const bt_ternary_unpack unpack = {(uint8_t *)memory, nullptr, memory, n, k, bytes, k, 0, k, type, nullptr};
        expect(bt_ternary_unpack_cuda_baseline(&unpack, 0, 0), "unpack", 0, n, k);
        bt_ternary_embedding embedding = {};
        embedding.index = (int64_t *)memory, embedding.w = (uint8_t *)memory, embedding.scale = (float *)memory;
        embedding.y = memory, embedding.m = embedding.n = n, embedding.k = embedding.ldy = embedding.group = k;
        embedding.ldw = bytes, embedding.depth = 1, embedding.y_type = type;
        expect(bt_ternary_embedding_cuda_baseline(&embedding, 0, 0), "ternary_embedding", 0, n, k);
        bt_hadamard rotation = {};
        rotation.x = memory, rotation.y = memory, rotation.m = n, rotation.k = rotation.ldx = rotation.ldy = k;
        rotation.n = 1, rotation.type = type;
        if ((double)n * (double)k < 0x1p62)
            expect(bt_hadamard_cuda_baseline(&rotation, 0, 0), "hadamard", 0, n, k);
        bt_act_quantize act = {};
        act.x = memory, act.q = (int8_t *)memory, act.scale = (float *)memory, act.step = (double *)memory;
        act.m = n, act.k = k, act.ldx = k, act.ldq = bt_div_up(k, 256) * 256, act.x_type = type;
        for (act.digits = 1; act.digits <= (type == BT_I8 ? 1 : 3); act.digits++)
            for (act.order = BT_ORDER_NATURAL; act.order <= BT_ORDER_STRIDE4; act.order++)
                expect(bt_act_quantize_cuda_baseline(&act, 0, 0), "act_quantize", 0, n, k);
    }
    for (int method = 0; method < BT_METHOD_COUNT; method++) {
        bt_ternary_quantize q = {};
        q.w = q.workspace = memory, q.packed = (uint8_t *)memory, q.scale = (float *)memory;
        q.n = n, q.k = q.ldx = q.group = k, q.ldw = bytes, q.method = method;
        for (q.lds = 0; q.lds < 2; q.lds++)
            if ((double)n * (double)k < 0x1p40) /* a sort of 2^40 weights: 800 launches for each of many batches */
                expect(bt_ternary_quantize_cuda_baseline(&q, 0, 0), "ternary_quantize", 0, n, k);
    }
}

static void sizes() {
    static char memory[16] __attribute__((aligned(16)));
    stub::execute = false;
    bt_max_blocks = 65535, bt_quantize_keys = 1 << 24, bt_bulk_tall = BT_SKINNY_BLOCKS;
    const int64_t large[] = {1, 16, 17, 65535, 65536, 1 << 20, 0x7fffffff, 0x80000000, 1ll << 33};
    for (const int64_t n : large) {
        for (const int64_t m : large)
            for (const int64_t k : {1ll, 64ll, 4096ll, 4194304ll})
                for (int digits = 1; digits <= 3; digits += 2)
                    for (const int64_t group : {k, (int64_t)64})
                        if (k % group == 0 && (double)m * (double)n < 0x1p60)
                            products(m, n, k, group, digits, memory);
        for (const int64_t k : large)
            others(n, k, memory);
    }
    stub::execute = true;
    bt_max_blocks = 3, bt_quantize_keys = 1024, bt_bulk_tall = 2;
}

/* Rows that lie more than 2^31 bytes apart, of which only the rows are there. */
struct Far {
    enum : int64_t { APART = (1ll << 31) + 4096, ROWS = 20 };
    uint8_t *memory;
    int64_t rows;

    Far(int64_t rows_, int64_t row_bytes) : rows(rows_) {
        void *const reserved = mmap(nullptr, (size_t)(rows * APART), PROT_READ | PROT_WRITE,
                                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        check(reserved != MAP_FAILED, "%ld bytes of addresses", (long)(rows * APART));
        memory = (uint8_t *)reserved;
        for (int64_t r = 0; r < rows; r++) {
            ptx::Region &buffer = ptx::buffers[(ptx::Word)(memory + r * APART)];
            buffer.base = (ptx::Word)(memory + r * APART);
            buffer.bytes = memory + r * APART;
            buffer.size = buffer.row_bytes = buffer.step = (size_t)row_bytes;
        }
    }
    ~Far() {
        for (int64_t r = 0; r < rows; r++)
            ptx::buffers.erase((ptx::Word)(memory + r * APART));
        munmap(memory, (size_t)(rows * APART));
    }
    Far(const Far &) = delete;
};

static void far_products(Random &random) {
    const int64_t m = 3, n = Far::ROWS, k = 200;
    const Far x(m, 2 * k), w(n, k / 4), y(m, 4 * n);
    const Buffer one = buffer_of(std::vector<float>((size_t)n, 1.0f));
    std::vector<int> dots((size_t)(m * n));
    for (int64_t r = 0; r < n; r++)
        for (int64_t c = 0; c < k; c++)
            w.memory[r * Far::APART + c / 4] |= (uint8_t)(random.below(3) << (2 * (c % 4)));
    for (const bool halves : {false, true}) {
        std::fill(dots.begin(), dots.end(), 0);
        for (int64_t i = 0; i < m * k; i++) {
            const int value = (int)random.below(17) - 8;
            uint8_t *const row = x.memory + i / k * Far::APART;
            if (halves)
                bt_store(row, BT_F16, i % k, (float)value);
            else
                row[i % k] = (uint8_t)value;
            for (int64_t r = 0; r < n; r++) {
                const int code = w.memory[r * Far::APART + i % k / 4] >> (2 * (i % 4)) & 3;
                dots[(size_t)(i / k * n + r)] += value * ((code & 1) - (code >> 1));
            }
        }
        const auto compare = [&](bt_status status, const char *variant) {
            int right = 0;
            for (int64_t i = 0; i < m * n; i++)
                right += ((const float *)(y.memory + i / n * Far::APART))[i % n] == (float)dots[(size_t)i];
            check(status == BT_OK && right == m * n, "%s: rows more than 2^31 bytes apart: %d right", variant, right);
            for (int64_t i = 0; i < m; i++)
                memset(y.memory + i * Far::APART, 0xff, (size_t)(4 * n));
        };
        bt_ternary_linear_w2a8 p = {};
        p.q = (int8_t *)x.memory, p.q_scale = p.scale = one.data<float>(), p.w = w.memory, p.y = y.memory;
        p.m = m, p.n = n, p.k = p.group = k, p.ldq = p.ldw = Far::APART, p.ldy = Far::APART / 4, p.digits = 1;
        static const Kernel<bt_ternary_linear_w2a8_fn> codes[] = {BT_TERNARY_LINEAR_W2A8(GPU_KERNEL)};
        for (size_t i = 0; !halves && i < sizeof codes / sizeof *codes; i++)
            compare(codes[i].run(&p, 0, 0), codes[i].variant);
        bt_ternary_linear_packed f = {};
        f.x = x.memory, f.w = w.memory, f.scale = one.data<float>(), f.y = y.memory;
        f.m = m, f.n = n, f.k = f.group = k, f.ldx = Far::APART / 2, f.ldw = Far::APART, f.ldy = Far::APART / 4;
        f.x_type = BT_F16;
        static const Kernel<bt_ternary_linear_packed_fn> of_halves[] = {BT_TERNARY_LINEAR_PACKED(GPU_KERNEL)};
        for (const auto &kernel : of_halves)
            if (halves && !(kernel.needs & BT_GPU_UNPACK))
                compare(kernel.run(&f, 0, 0), kernel.variant);
    }
}

void test_limits() {
    Random random(8);
    sizes();
    far_products(random);
}
