/* Fibers on ucontext. A fiber is made once and runs the body of one thread of one block after another; it gives control
 * back to the scheduler at a barrier, at an instruction of its whole warp and at the end of the body. */
#include "cusim.h"

#include "../../csrc/kernels/cpu/half.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <numeric>
#include <ucontext.h>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#else
static inline void __sanitizer_start_switch_fiber(void **, const void *, size_t) {
}
static inline void __sanitizer_finish_switch_fiber(void *, const void **, size_t *) {
}
#endif

/* Frames that live in AddressSanitizer's heap would not follow a change of stack. */
extern "C" const char *__asan_default_options() {
    return "detect_stack_use_after_return=0";
}

extern char __start_cusim_shared[] __attribute__((weak));
extern char __stop_cusim_shared[] __attribute__((weak));

dim3 gridDim, blockDim, blockIdx, threadIdx;

namespace cusim {

Order order = FORWARD;
bool has_device = true;

namespace {

enum { MAX_THREADS = 1024, STACK_BYTES = 64 * 1024, LANES = 32 };
enum State { RUNNABLE, WAITING, WAITING_FOR_WARP, DONE };

/* One copy of 16 bytes to shared memory. */
struct Copy {
    void *to;
    const void *from;
    unsigned group;
};

struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    void *fake_stack = nullptr; /* AddressSanitizer's */
    State state = DONE;
    const char *file = nullptr; /* of the barrier where it waits */
    int line = 0;
    dim3 thread;
    unsigned index = 0; /* in its block */
    unsigned collectives = 0;
    std::deque<Copy> copies;
    unsigned groups = 0; /* that were committed */
};

struct Scheduler {
    ucontext_t context;
    void *fake_stack = nullptr;
    const void *stack = nullptr;
    size_t stack_bytes = 0;
};

std::vector<std::unique_ptr<Fiber>> fibers;
Scheduler scheduler;
Fiber *current;
const std::function<void()> *kernel;
cudaError_t last_error = cudaSuccess;
uint32_t random_state = 1;
std::unique_ptr<char[]> dynamic; /* with 15 bytes to align it */
size_t dynamic_bytes = 0;
std::map<const void *, size_t> allowed_shared;

/* What the lanes give to an instruction of their warp. Two sets, in turn: a lane that goes on to the next one does not
 * overwrite what others still read, and it cannot be two ahead, because that next one waits for all. */
struct Operands {
    uint32_t a[4], b[2];
};
Operands operands[2][MAX_THREADS];

uint32_t random_below(uint32_t bound) {
    random_state = random_state * 1664525u + 1013904223u;
    return (uint32_t)(((uint64_t)random_state * bound) >> 32);
}

/* 0 .. count - 1 as the current order has them. */
const std::vector<unsigned> &turns(unsigned count, std::vector<unsigned> &list) {
    list.resize(count);
    std::iota(list.begin(), list.end(), 0u);
    for (unsigned i = 0; order == REVERSE && i < count; i++)
        list[i] = count - 1 - i;
    for (unsigned i = count; order == RANDOM && i > 1; i--)
        std::swap(list[i - 1], list[random_below(i)]);
    return list;
}

void enter(Fiber &fiber) {
    current = &fiber;
    threadIdx = fiber.thread;
    __sanitizer_start_switch_fiber(&scheduler.fake_stack, fiber.stack.get(), STACK_BYTES);
    swapcontext(&scheduler.context, &fiber.context);
    __sanitizer_finish_switch_fiber(scheduler.fake_stack, nullptr, nullptr);
}

void leave() {
    Fiber &fiber = *current;
    __sanitizer_start_switch_fiber(&fiber.fake_stack, scheduler.stack, scheduler.stack_bytes);
    swapcontext(&fiber.context, &scheduler.context);
    __sanitizer_finish_switch_fiber(fiber.fake_stack, &scheduler.stack, &scheduler.stack_bytes);
}

[[noreturn]] void copies_left() {
    fprintf(stderr, "cusim: thread %u of block (%u, %u, %u) ends with %zu copies under way\n", current->index,
            blockIdx.x, blockIdx.y, blockIdx.z, current->copies.size());
    fflush(stderr);
    _Exit(5);
}

void fiber_main() {
    __sanitizer_finish_switch_fiber(nullptr, &scheduler.stack, &scheduler.stack_bytes);
    for (;;) {
        (*kernel)();
        if (!current->copies.empty())
            copies_left();
        current->state = DONE;
        leave();
    }
}

void make_fibers(unsigned count) {
    while (fibers.size() < count) {
        fibers.push_back(std::make_unique<Fiber>());
        Fiber &fiber = *fibers.back();
        fiber.stack.reset(new char[STACK_BYTES]);
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.get();
        fiber.context.uc_stack.ss_size = STACK_BYTES;
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, fiber_main, 0);
    }
}

[[noreturn]] void divergence(unsigned count) {
    fprintf(stderr, "cusim: block (%u, %u, %u): not all of the %u threads reach the same barrier\n", blockIdx.x,
            blockIdx.y, blockIdx.z, count);
    for (unsigned t = 0; t < count; t++) {
        const Fiber &fiber = *fibers[t];
        if (t > 0 && fiber.state == fibers[t - 1]->state && fiber.line == fibers[t - 1]->line)
            continue;
        if (fiber.state == DONE)
            fprintf(stderr, "  from thread %u on: the kernel has ended\n", t);
        else
            fprintf(stderr, "  from thread %u on: waits at %s:%d\n", t, fiber.file, fiber.line);
    }
    fflush(stderr);
    _Exit(3);
}

bool same_place(const Fiber &a, const Fiber &b) {
    return a.state == b.state && (a.state == DONE || (a.line == b.line && a.file == b.file));
}

/* Whether fibers [begin, end) all wait at one place, in this state. */
bool together(unsigned begin, unsigned end, State state) {
    for (unsigned t = begin; t < end; t++)
        if (fibers[t]->state != state || !same_place(*fibers[t], *fibers[begin]))
            return false;
    return true;
}

void let_run(unsigned begin, unsigned end) {
    for (unsigned t = begin; t < end; t++)
        fibers[t]->state = RUNNABLE;
}

/* Every thread waits at a barrier of the block or is done. Returns whether the block goes on. */
bool release(unsigned count) {
    if (together(0, count, DONE))
        return false;
    if (!together(0, count, WAITING))
        divergence(count);
    let_run(0, count);
    return true;
}

/* The threads of a warp, up to a barrier of the block: no warp waits for another before it has to, so that one that
 * runs ahead without a barrier meets the others' data half done. */
void run_warp(unsigned begin, unsigned end) {
    static std::vector<unsigned> list;
    for (;;) {
        for (const unsigned t : turns(end - begin, list))
            if (fibers[begin + t]->state == RUNNABLE)
                enter(*fibers[begin + t]);
        if (end - begin < LANES || !together(begin, end, WAITING_FOR_WARP))
            return;
        let_run(begin, end);
    }
}

void run_block(unsigned count) {
    static std::vector<unsigned> list;
    if (__start_cusim_shared)
        memset(__start_cusim_shared, 0xff, (size_t)(__stop_cusim_shared - __start_cusim_shared));
    if (dynamic_bytes)
        memset(dynamic_shared(), 0xff, dynamic_bytes);
    for (unsigned t = 0; t < count; t++) {
        fibers[t]->state = RUNNABLE;
        fibers[t]->index = t;
        fibers[t]->thread = dim3(t % blockDim.x, t / blockDim.x % blockDim.y, t / blockDim.x / blockDim.y);
    }
    do
        for (const unsigned warp : turns((count + LANES - 1) / LANES, list))
            run_warp(warp * LANES, std::min(count, (warp + 1) * LANES));
    while (release(count));
}

void wait(State state, const char *file, int line) {
    current->state = state;
    current->file = file;
    current->line = line;
    leave();
}

/* The operands of the whole warp, by lane. `line` tells one instruction from another. */
const Operands *exchange(const uint32_t (&a)[4], const uint32_t (&b)[2], int line) {
    const Fiber &lane = *current;
    Operands *const set = operands[current->collectives++ & 1u];
    memcpy(set[lane.index].a, a, sizeof a);
    memcpy(set[lane.index].b, b, sizeof b);
    wait(WAITING_FOR_WARP, __FILE__, line);
    return set + lane.index / LANES * LANES;
}

/* d += a b, where a word of a fragment holds PER elements of the type that `element` takes out of it. */
template <int PER, class Sum, class Element>
void multiply(Sum (&d)[4], const Operands *warp, unsigned lane, Element element) {
    const unsigned g = lane / 4, t = lane % 4;
    for (unsigned i = 0; i < 4; i++) {
        const unsigned row = g + 8 * (i >> 1), column = 2 * t + (i & 1);
        for (unsigned k = 0; k < 8 * PER; k++) {
            const unsigned holder = k / PER % 4, half = k / (4 * PER);
            const uint32_t a = warp[4 * (row % 8) + holder].a[row / 8 + 2 * half];
            d[i] += element(a, k % PER) * element(warp[4 * column + holder].b[half], k % PER);
        }
    }
}

} // namespace

void barrier(const char *file, int line) {
    wait(WAITING, file, line);
}

void warp_barrier(const char *file, int line) {
    wait(WAITING_FOR_WARP, file, line);
}

void mma_s8(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    const Operands *warp = exchange(a, b, __LINE__);
    multiply<4>(d, warp, current->index % LANES, [](uint32_t word, unsigned i) { return (int8_t)(word >> (8 * i)); });
}

void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    const Operands *warp = exchange(a, b, __LINE__);
    multiply<2>(d, warp, current->index % LANES,
                [](uint32_t word, unsigned i) { return bt_from_f16((uint16_t)(word >> (16 * i))); });
}

void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    const Operands *warp = exchange(a, b, __LINE__);
    multiply<2>(d, warp, current->index % LANES,
                [](uint32_t word, unsigned i) { return bt_from_bf16((uint16_t)(word >> (16 * i))); });
}

void check_alignment(const void *address, unsigned bytes) {
    if ((uintptr_t)address % bytes == 0)
        return;
    fprintf(stderr, "cusim: thread %u of block (%u, %u, %u) loads %u bytes at %p\n", current->index, blockIdx.x,
            blockIdx.y, blockIdx.z, bytes, address);
    fflush(stderr);
    _Exit(4);
}

void *dynamic_shared() {
    return dynamic.get() + (-(uintptr_t)dynamic.get() & 15);
}

void copy_async(void *to, const void *from) {
    check_alignment(to, 16);
    check_alignment(from, 16);
    memset(to, 0xff, 16);
    current->copies.push_back({to, from, current->groups});
}

void copy_commit() {
    current->groups++;
}

void copy_wait(unsigned groups) {
    std::deque<Copy> &copies = current->copies;
    for (; !copies.empty() && copies.front().group + groups < current->groups; copies.pop_front())
        memcpy(copies.front().to, copies.front().from, 16);
}

void launch(dim3 grid, dim3 block, const std::function<void()> &body, size_t shared, const void *function) {
    const uint64_t threads = (uint64_t)block.x * block.y * block.z;
    if (threads < 1 || threads > MAX_THREADS || block.z > 64 || grid.x < 1 || grid.x > 0x7fffffffu || grid.y < 1 ||
        grid.y > 65535 || grid.z < 1 || grid.z > 65535) {
        last_error = cudaErrorInvalidConfiguration;
        return;
    }
    if (shared > 48 * 1024 && shared > allowed_shared[function]) {
        last_error = cudaErrorInvalidValue;
        return;
    }
    dynamic.reset(new char[shared + 15]);
    dynamic_bytes = shared;
    std::vector<unsigned> list;
    gridDim = grid;
    blockDim = block;
    kernel = &body;
    make_fibers((unsigned)threads);
    for (const unsigned b : turns(grid.x * grid.y * grid.z, list)) {
        blockIdx = dim3(b % grid.x, b / grid.x % grid.y, b / grid.x / grid.y);
        run_block((unsigned)threads);
    }
}

} // namespace cusim

cudaError_t cudaGetLastError() {
    return std::exchange(cusim::last_error, cudaSuccess);
}

cudaError_t cudaGetDevice(int *device) {
    *device = 0;
    return cusim::has_device ? cudaSuccess : cusim::last_error = cudaErrorNoDevice;
}

cudaError_t cudaDeviceGetAttribute(int *value, int attribute, int) {
    *value = attribute == cudaDevAttrComputeCapabilityMajor ? 8 : 0;
    return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void *kernel, int attribute, int value) {
    const bool good = attribute == cudaFuncAttributeMaxDynamicSharedMemorySize && value <= 99 * 1024;
    if (good)
        cusim::allowed_shared[kernel] = (size_t)value;
    return cusim::last_error = good ? cudaSuccess : cudaErrorInvalidValue;
}

const char *cudaGetErrorString(cudaError_t error) {
    return error == cudaSuccess             ? "no error"
           : error == cudaErrorInvalidValue ? "invalid argument"
                                            : "invalid configuration argument";
}
