/* The emulator itself: it must see what the other tests count on. */
#include "../../csrc/kernels/cuda/ptx.cuh"
#include "../../csrc/kernels/cuda_device.h"
#include "test.h"

#include <sys/wait.h>
#include <unistd.h>

enum Barrier { NONE, OF_WARP, OF_BLOCK };

/* `apart` is 1 or 32: a thread of the same warp or of the other one. */
static void neighbours(int *out, Barrier barrier, int apart) {
    __shared__ int values[64];
    const int t = (int)threadIdx.x;
    values[t] = t;
    if (barrier == OF_WARP)
        __syncwarp();
    if (barrier == OF_BLOCK)
        __syncthreads();
    out[t] = values[t ^ apart];
}

static void diverge() {
    if (threadIdx.x < 7)
        __syncthreads();
}

static void diverge_in_a_warp() {
    if (threadIdx.x < 7)
        __syncwarp();
}

static void meet_elsewhere() {
    if (threadIdx.x < 7)
        __syncthreads();
    else
        __syncthreads();
}

static void number_threads(int *out) {
    const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    out[block * blockDim.x * blockDim.y * blockDim.z + thread]++;
}

static int exit_code_of(void (*kernel)()) {
    const pid_t child = fork();
    if (child == 0) {
        if (!freopen("/dev/null", "w", stderr))
            _Exit(1);
        cusim::launch(dim3(1), dim3(32), kernel, 1024);
        _Exit(0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* An element of a fragment: its row and column, as the PTX ISA gives them for element i of lane 4 g + t. */
struct Place {
    int row, column;
};

static Place of_a(int per, int g, int t, int i) { /* 4 per: elements of a lane; per 4 is s8, per 2 a half type */
    const bool low = i < per || (i >= 2 * per && i < 3 * per);
    return {low ? g : g + 8, t * per + i % per + (i >= 2 * per ? 4 * per : 0)};
}

static Place of_b(int per, int g, int t, int i) {
    return {t * per + i % per + (i >= per ? 4 * per : 0), g};
}

static Place of_d(int g, int t, int i) {
    return {i < 2 ? g : g + 8, 2 * t + (i & 1)};
}

/* Elements of random matrices, a 16 x 8 per and b 8 per x 8, as bits of `type`; small integers, so that sums are exact
 * in any order. */
struct Matrices {
    int per, type;
    std::vector<int> a, b;
    Matrices(Random &random, int per_, int type_)
        : per(per_), type(type_), a((size_t)(16 * 8 * per)), b((size_t)(8 * per * 8)) {
        for (int &value : a)
            value = (int)random.below(255) - 127;
        for (int &value : b)
            value = type == BT_I8 ? -128 + (int)random.below(256) : (int)random.below(255) - 127;
    }
    uint32_t bits(int value) const {
        return type == BT_I8    ? (uint8_t)value
               : type == BT_F16 ? (uint32_t)bt_to_f16((float)value)
                                : (uint32_t)bt_to_bf16((float)value);
    }
    int product(Place d) const {
        int sum = 0;
        for (int k = 0; k < 8 * per; k++)
            sum += a[(size_t)(d.row * 8 * per + k)] * b[(size_t)(k * 8 + d.column)];
        return sum;
    }
};

template <class Sum, class Mma> static void multiply(const Matrices &m, Mma mma, int times, int *wrong) {
    const int lane = (int)threadIdx.x % 32, g = lane / 4, t = lane % 4, width = 32 / m.per;
    uint32_t a[4] = {0}, b[2] = {0};
    for (int i = 0; i < 4 * m.per; i++) {
        const Place at = of_a(m.per, g, t, i);
        a[i / m.per] |= m.bits(m.a[(size_t)(at.row * 8 * m.per + at.column)]) << (width * (i % m.per));
    }
    for (int i = 0; i < 2 * m.per; i++) {
        const Place at = of_b(m.per, g, t, i);
        b[i / m.per] |= m.bits(m.b[(size_t)(at.row * 8 + at.column)]) << (width * (i % m.per));
    }
    Sum d[4] = {0};
    for (int i = 0; i < times; i++)
        mma(d, a, b);
    for (int i = 0; i < 4; i++)
        *wrong += d[i] != (Sum)(times * m.product(of_d(g, t, i)));
}

static void tensor_cores(Random &random, const char *order) {
    for (int times = 1; times < 4; times++) {
        const Matrices s8(random, 4, BT_I8), f16(random, 2, BT_F16), bf16(random, 2, BT_BF16);
        int wrong = 0;
        cusim::launch(dim3(1), dim3(96), [&] {
            if (threadIdx.x >= 64) /* a warp may go its own way */
                return multiply<float>(f16, bt_mma_f16, times, &wrong);
            multiply<int>(s8, bt_mma_s8, times, &wrong);
            multiply<float>(bf16, bt_mma_bf16, times, &wrong);
        });
        check(wrong == 0, "cusim: mma.sync %d times, %s: %d sums are wrong", times, order, wrong);
    }
}

static void half_a_warp() {
    int d[4] = {0};
    if (threadIdx.x < 16)
        bt_mma_s8(d, {0, 0, 0, 0}, {0, 0});
}

static void load_askew() {
    alignas(16) static const char bytes[32] = {0};
    bt_load_once(bytes + 8);
}

/* Each thread copies 16 bytes, and its neighbour's are read after a barrier; with or without waiting before it. */
static void copied(const uint4 *in, int *wrong, bool waits) {
    BT_DYNAMIC_SHARED(memory);
    const int t = (int)threadIdx.x, neighbour = (t + 1) % 64;
    bt_copy_async(memory + t, in + t);
    bt_copy_commit();
    bt_copy_async(memory + 64 + t, in + 64 + t);
    bt_copy_commit();
    waits ? bt_copy_wait<1>() : bt_copy_wait<2>();
    __syncthreads();
    *wrong += memory[neighbour].x != in[neighbour].x;
    const bool late = memory[64 + neighbour].x != in[64 + neighbour].x;
    __syncthreads();
    bt_copy_wait<0>();
    __syncthreads();
    *wrong += !late + (memory[64 + neighbour].w != in[64 + neighbour].w);
}

static void never_waits() {
    BT_DYNAMIC_SHARED(memory);
    static const uint4 from = {1, 2, 3, 4};
    bt_copy_async(memory, &from);
}

static void too_much(int *out) {
    BT_DYNAMIC_SHARED(memory);
    out[0] = (int)memory[0].x;
}

static void copies(const char *order) {
    std::vector<uint4> in(128);
    for (unsigned i = 0; i < 128; i++)
        in[i] = {i, i, i, i + 7};
    for (const bool waits : {true, false}) {
        int wrong = 0;
        check(BT_LAUNCH_SHARED(copied, 2048, dim3(3), dim3(64), nullptr, in.data(), &wrong, waits) == BT_OK, "launch");
        check((wrong == 0) == waits, "cusim: copies arrive when they are waited for, %s: %d", order, wrong);
    }
    check(exit_code_of(never_waits) == 5, "cusim: a thread that ends with copies under way, %s", order);
}

/* 48 KiB of dynamic shared memory are for everybody, 99 have to be asked for, more there are not. */
static void shared_memory() {
    int out[1];
    const auto raw = [&](size_t bytes) {
        cusim::launch(dim3(1), dim3(1), [&] { too_much(out); }, bytes, (const void *)too_much);
        return bt_launch_status();
    };
    check(raw(48 * 1024) == BT_OK && raw(48 * 1024 + 16) == BT_ERR_CUDA + 1, "cusim: the attribute is not raised");
    check(BT_LAUNCH_SHARED(too_much, 99 * 1024, dim3(1), dim3(1), nullptr, out) == BT_OK && out[0] == -1,
          "cusim: 99 KiB of dynamic shared memory, poison at first");
    check(BT_LAUNCH_SHARED(too_much, 100 * 1024, dim3(1), dim3(1), nullptr, out) == BT_ERR_CUDA + 1 &&
              bt_launch_status() == BT_OK,
          "cusim: more than a device has is an error, which does not stay");
}

static void permuted_bytes() {
    check(__byte_perm(0x03020100u, 0x07060504u, 0x7362u) == 0x07030602u, "cusim: __byte_perm");
    check(__byte_perm(0x03020100u, 0x07060504u, 0x5410u) == 0x05040100u, "cusim: __byte_perm");
}

void test_cusim() {
    Random random(6);
    permuted_bytes();
    shared_memory();
    int seen_wrong[3][2] = {};
    for_orders([&](const char *order) {
        for (const Barrier barrier : {NONE, OF_WARP, OF_BLOCK})
            for (const int far : {0, 1}) {
                int out[64];
                cusim::launch(dim3(2), dim3(64), [&] { neighbours(out, barrier, far ? 32 : 1); });
                for (int t = 0; t < 64; t++)
                    seen_wrong[barrier][far] += out[t] != (t ^ (far ? 32 : 1));
            }
        check(exit_code_of(diverge_in_a_warp) == 3, "cusim: a barrier of a warp that some lanes miss, %s", order);
        check(exit_code_of(diverge) == 3, "cusim: a barrier that some threads miss, %s", order);
        check(exit_code_of(meet_elsewhere) == 3, "cusim: threads at different barriers, %s", order);
        check(exit_code_of(half_a_warp) == 3, "cusim: an instruction of the warp that some lanes miss, %s", order);
        check(exit_code_of(load_askew) == 4, "cusim: a wide load that is not aligned, %s", order);
        tensor_cores(random, order);
        copies(order);

        std::vector<int> seen(3 * 4 * 5 * 2 * 3 * 4, 0);
        check(BT_LAUNCH(number_threads, dim3(3, 4, 5), dim3(2, 3, 4), nullptr, seen.data()) == BT_OK, "launch");
        int once = 0;
        for (const int times : seen)
            once += times == 1;
        check(once == (int)seen.size(), "cusim: every thread of a grid runs once, %s", order);
    });
    for (const Barrier barrier : {NONE, OF_WARP, OF_BLOCK})
        for (const int far : {0, 1})
            check((seen_wrong[barrier][far] == 0) == (barrier == OF_BLOCK || (barrier == OF_WARP && !far)),
                  "cusim: barrier %d orders what it is for, and a missing one shows under some order", barrier);
    const bt_status status = BT_LAUNCH(number_threads, dim3(1, 65536), dim3(1), nullptr, nullptr);
    check(status == BT_ERR_CUDA + 9, "cusim: a launch beyond the limits gives its error");
    check(strcmp(bt_cuda_error_string(status), "invalid configuration argument") == 0, "bt_cuda_error_string");
    int sm = 0;
    cusim::has_device = false;
    check(bt_cuda_sm(&sm) == BT_ERR_CUDA + 100, "bt_cuda_sm: the error of a device that does not answer");
    cusim::has_device = true;
    check(bt_cuda_sm(&sm) == BT_OK && sm == 80, "bt_cuda_sm");
    int ran[1] = {0};
    check(BT_LAUNCH(number_threads, dim3(1), dim3(1), nullptr, ran) == BT_OK && ran[0] == 1,
          "bt_cuda_sm leaves no error behind for the next launch");
    check(strcmp(bt_cuda_error_string(BT_OK), "no CUDA error") == 0, "bt_cuda_error_string of BT_OK");
}
