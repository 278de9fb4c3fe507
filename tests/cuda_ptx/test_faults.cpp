/* The interpreter itself: every kind of fault in a kernel of a few lines, and the same kernel without it. */
#include "../cuda_host/test.h"
#include "stub.h"

#include <sstream>
#include <sys/wait.h>
#include <unistd.h>

/* %r1 is the thread, %rd1 its four bytes of `in`, which are its number, and %rd2 those of `out`; %r2 those of `here`.
 */
static const char *const HEAD = R"(
.version 8.0
.target sm_80
.address_size 64
.extern .shared .align 16 .b8 memory[];
.entry probe(
    .param .u64 in,
    .param .u64 out
)
{
    .reg .pred %p<4>;
    .reg .b32 %r<20>;
    .reg .b64 %rd<9>;
    .shared .align 16 .b8 here[256];
    .shared .align 16 .b8 there[256];
    mov.u32 %r1, %tid.x;
    mul.wide.u32 %rd5, %r1, 4;
    ld.param.u64 %rd3, [in];
    cvta.to.global.u64 %rd3, %rd3;
    add.s64 %rd1, %rd3, %rd5;
    ld.param.u64 %rd4, [out];
    cvta.to.global.u64 %rd4, %rd4;
    add.s64 %rd2, %rd4, %rd5;
    shl.b32 %r2, %r1, 2;
    mov.u32 %r3, here;
    add.s32 %r2, %r2, %r3;
    setp.lt.u32 %p1, %r1, 7;
)";

static const char *const PUT = "st.shared.u32 [%r2], %r1;\n", *const BARRIER = "bar.sync 0;\n",
                         *const WARP = "bar.warp.sync -1;\n";
static const char *const NEXT = "xor.b32 %r4, %r2, 4;\nld.shared.u32 %r5, [%r4];\n"; /* the neighbour's */
static const char *const FAR = "xor.b32 %r4, %r1, 32;\nshl.b32 %r4, %r4, 2;\nadd.s32 %r4, %r4, %r3;\n"
                               "ld.shared.u32 %r5, [%r4];\n"; /* one of another warp */
static const char *const KEEP = "st.global.u32 [%rd2], %r5;\n";
static const char *const COPY = "shl.b32 %r6, %r1, 4;\nand.b32 %r6, %r6, 255;\nadd.s32 %r6, %r6, %r3;\n"
                                "setp.lt.u32 %p2, %r1, 16;\nshl.b64 %rd6, %rd5, 2;\nadd.s64 %rd6, %rd6, %rd3;\n"
                                "@%p2 cp.async.cg.shared.global [%r6], [%rd6], 16;\ncp.async.commit_group;\n";
static const char *const WAIT = "cp.async.wait_group 0;\n";
static const char *const MULTIPLY = "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%r6,%r7,%r8,%r9}, "
                                    "{%r1,%r1,%r1,%r1}, {%r1,%r1}, {%r1,%r1,%r1,%r1};\n";

static ptx::Kernel &parse(const std::string &body) {
    std::istringstream text(HEAD + body);
    ptx::parse(text, "probe.ptx");
    return ptx::kernels.at("probe");
}

/* What the interpreter says of a kernel, with `blocks` blocks of 64 threads. */
static std::string faults_of(const std::string &body, unsigned blocks, const Buffer &out) {
    std::vector<uint32_t> numbers(64);
    for (uint32_t i = 0; i < 64; i++)
        numbers[i] = i;
    const Buffer in = buffer_of(numbers);
    ptx::Kernel &kernel = parse(body + "\nend:\nret;\n}\n");
    const unsigned grid[] = {blocks, 1, 1}, block[] = {64, 1, 1};
    void *pointers[] = {in.data(), out.data()}, *arguments[] = {pointers, pointers + 1};
    ptx::run(kernel, ptx::make_launch(kernel, grid, block, 0, arguments));
    ptx::kernels.erase("probe");
    return ptx::take_faults();
}

/* The fault that a body has, and what cures it. */
static void kinds() {
    const auto text = [](std::initializer_list<std::string> parts) {
        std::string all;
        for (const auto &part : parts)
            all += part;
        return all;
    };
    const std::string load = "ld.global.u32 %r5, [%rd1", skip = "@%p1 bra end;\n";
    const struct {
        std::string fault, body; /* no fault: none */
        unsigned blocks;
    } cases[] = {{"", text({PUT, BARRIER, NEXT, KEEP}), 1},
                 {"read of what another thread writes", text({PUT, NEXT, KEEP}), 1},
                 {"", text({PUT, WARP, NEXT, KEEP}), 1},
                 {"read of what another thread writes", text({PUT, WARP, FAR, KEEP}), 1},
                 {"", text({PUT, WARP, NEXT, WARP, PUT, KEEP}), 1},
                 {"write of what another thread reads", text({PUT, WARP, NEXT, PUT, KEEP}), 1},
                 {"write of what another thread reads", text({PUT, BARRIER, FAR, NEXT, WARP, PUT, KEEP}), 1},
                 {"", text({PUT, BARRIER, FAR, KEEP}), 1},
                 {"read of what another thread writes", text({PUT, FAR, KEEP}), 1},
                 {"write of what another thread reads", text({PUT, BARRIER, FAR, PUT, KEEP}), 1},
                 {"", text({PUT, BARRIER, FAR, BARRIER, PUT, KEEP}), 1},
                 {"write of what another thread writes", "st.shared.u32 [here], %r1;\n", 1},
                 {"write of what another thread writes", text({"mov.u32 %r5, 0;\n", KEEP}), 2},
                 {"undefined data is stored to global", text({NEXT, KEEP}), 1},
                 {"undefined data is stored to global", KEEP, 1},
                 {"predicate depends on undefined", text({NEXT, "setp.eq.s32 %p3, %r5, 0;\n@%p3 bra end;\n"}), 1},
                 {"address depends on undefined", "ld.shared.u32 %r5, [%r9];\n", 1},
                 {"", text({load, "];\n", KEEP}), 1},
                 {"out of bounds", text({load, "+4];\n"}), 1},
                 {"out of bounds", text({load, "+-4];\n"}), 1},
                 {"out of bounds", "st.global.u32 [%rd2+4], %r1;\n", 1},
                 {"out of bounds", "st.shared.u32 [%r2+256], %r1;\n", 1},
                 {"out of bounds", "mov.u32 %r4, memory;\nst.shared.u32 [%r4], %r1;\n", 1},
                 {"misaligned", text({load, "+2];\n"}), 1},
                 {"misaligned", "ld.global.v2.u32 {%r5, %r6}, [%rd1];\n", 1},
                 {"", text({COPY, WAIT, BARRIER, NEXT, KEEP}), 1},
                 {"read of a copy before the wait", text({COPY, NEXT, WAIT}), 1},
                 {"read of a copy before the wait", text({COPY, "cp.async.wait_group 1;\n", NEXT, WAIT}), 1},
                 {"read of what another thread writes", text({COPY, WAIT, NEXT, KEEP}), 1},
                 {"nobody waited for", COPY, 1},
                 {"only a part of the warp", text({skip, BARRIER}), 1},
                 {"only a part of the warp", text({skip, WARP}), 1},
                 {"a warp never reaches", "setp.lt.u32 %p1, %r1, 32;\n@%p1 bra end;\nbar.sync 0;\n", 1},
                 {"different barriers",
                  "setp.lt.u32 %p1, %r1, 32;\n@%p1 bra low;\nbar.sync 0;\nbra end;\nlow:\nbar.sync 0;\n", 1},
                 {"only a part of the warp", text({skip, MULTIPLY}), 1},
                 {"", MULTIPLY, 1},
                 {"bra.uni by a part", "@%p1 bra.uni end;\n", 1},
                 {"ld.global.nc of what", "st.global.u32 [%rd2], %r1;\nld.global.nc.u32 %r5, [%rd2];\n", 1},
                 {"division by zero", "mov.u32 %r5, 0;\ndiv.u32 %r5, %r1, %r5;\n", 1}};
    for (const auto &one : cases) {
        const std::string found = faults_of(one.body, one.blocks, Buffer(BT_F32, 1, 64, 64));
        check(one.fault.empty() ? found.empty() : found.find(one.fault) != std::string::npos,
              "interpreter: \"%s\" expected of\n%sfound:\n%s", one.fault.c_str(), one.body.c_str(), found.c_str());
    }
    const Buffer out(BT_F32, 1, 64, 64);
    faults_of(text({PUT, BARRIER, FAR, KEEP}), 1, out);
    int right = 0;
    for (uint32_t i = 0; i < 64; i++)
        right += out.data<uint32_t>()[i] == (i ^ 32);
    check(right == 64, "interpreter: what is read after a barrier");
}

/* What is not known ends the program, and says where. */
static void unknown(const char *body) {
    fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
        if (!freopen("/dev/null", "w", stderr))
            _Exit(1);
        faults_of(body, 1, Buffer(BT_F32, 1, 64, 64));
        _Exit(0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    check(WIFEXITED(status) && WEXITSTATUS(status) == 2, "interpreter: %s is not known", body);
}

/* The runtime's limits, by a kernel with 512 bytes of static shared memory. */
static void launches() {
    static const char function = 0;
    stub::add(&function, "probe");
    parse("mov.u32 %r4, memory;\nret;\n}\n");
    stub::execute = false;
    void *pointer = nullptr, *arguments[] = {&pointer, &pointer};
    const auto launch = [&](dim3 grid, dim3 block, size_t shared) {
        return stub::launch(&function, &grid.x, &block.x, arguments, shared) == 0;
    };
    check(launch(dim3(0x7fffffff, 65535, 65535), dim3(1024), 0), "stub: the largest grid");
    check(!launch(dim3(1, 65536), dim3(1), 0) && !launch(dim3(1, 1, 65536), dim3(1), 0), "stub: too large a grid");
    check(!launch(dim3(0x80000000u), dim3(1), 0) && !launch(dim3(0), dim3(1), 0), "stub: too long a grid, and none");
    check(!launch(dim3(1), dim3(1025), 0) && !launch(dim3(1), dim3(32, 33), 0), "stub: too large a block");
    check(launch(dim3(1), dim3(1), 47 * 1024) && !launch(dim3(1), dim3(1), 48 * 1024), "stub: shared memory");
    check(stub::allow_shared(&function, 64 * 1024) == 0 && launch(dim3(1), dim3(1), 64 * 1024) &&
              !launch(dim3(1), dim3(1), 65 * 1024),
          "stub: shared memory that was asked for");
    check(stub::allow_shared(&function, 99 * 1024) != 0, "stub: more shared memory than there is");
    stub::execute = true;
    ptx::kernels.erase("probe");
}

/* The fragments of mma.sync against the layouts that CUTLASS has for them: a lane and its value as a place of the
 * matrix, of columns one below the other. */
static void fragments(Random &random, int per) {
    const int depth = 8 * per, width = 32 / per;
    std::vector<int> a((size_t)(16 * depth)), b((size_t)(8 * depth));
    ptx::Warp warp;
    warp.registers.resize(7 * ptx::WARP), warp.undefined.resize(7);
    for (unsigned lane = 0; lane < 32; lane++) {
        const int t = (int)lane % 4, g = (int)lane / 4;
        const auto bits = [&](int value) {
            return per == 4 ? (uint64_t)(uint8_t)value : (uint64_t)bt_to_f16((float)value);
        };
        for (int v = 0; v < 4 * per; v++) {
            const int of = v % per, row = v / per % 2, far = v / per / 2;
            const int at = t * 16 * per + g + 16 * of + 8 * row + 64 * per * far;
            a[(size_t)at] = (int)random.below(100) - 50;
            warp.values(v / per)[lane] |= bits(a[(size_t)at]) << (width * of);
        }
        for (int v = 0; v < 2 * per; v++) {
            const int at = t * 8 * per + g + 8 * (v % per) + 32 * per * (v / per);
            b[(size_t)at] = (int)random.below(100) - 50;
            warp.values(4 + v / per)[lane] |= bits(b[(size_t)at]) << (width * (v % per));
        }
    }
    ptx::Instruction at;
    at.number = per == 4 ? ptx::BYTES : ptx::HALVES;
    at.in = {0, 1, 2, 3, 4, 5, 6, 6, 6, 6}, at.out = {0, 1, 2, 3};
    multiply(warp, at);
    int wrong = 0;
    for (int lane = 0; lane < 32; lane++)
        for (int v = 0; v < 4; v++) {
            const int place = lane % 4 * 32 + lane / 4 + 16 * (v % 2) + 8 * (v / 2), row = place % 16,
                      column = place / 16;
            int sum = 0;
            for (int k = 0; k < depth; k++)
                sum += a[(size_t)(16 * k + row)] * b[(size_t)(8 * k + column)];
            const auto word = (uint32_t)warp.values(v)[lane];
            wrong += per == 4 ? (int)word != sum : bt_bits_float(word) != (float)sum;
        }
    check(wrong == 0, "interpreter: mma.sync of %d in a register: %d sums are wrong", per, wrong);
}

void test_faults() {
    Random random(7);
    kinds();
    unknown("sin.approx.f32 %r5, %r1;\n");
    unknown("bar.sync 1;\n");
    unknown("ld.volatile.shared.u32 %r5, [%r2];\n");
    unknown("mov.u32 %r5, %nothing;\n");
    launches();
    fragments(random, 4);
    fragments(random, 2);
}
