/* Fibers on ucontext. A fiber is made once and runs the body of one thread of one block after another; it gives control
 * back to the scheduler at a barrier and at the end of the body. */
#include "cusim.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
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

namespace {

enum { MAX_THREADS = 1024, STACK_BYTES = 64 * 1024 };
enum State { RUNNABLE, WAITING, DONE };

struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    void *fake_stack = nullptr; /* AddressSanitizer's */
    State state = DONE;
    const char *file = nullptr; /* of the barrier where it waits */
    int line = 0;
    dim3 thread;
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

void fiber_main() {
    __sanitizer_finish_switch_fiber(nullptr, &scheduler.stack, &scheduler.stack_bytes);
    for (;;) {
        (*kernel)();
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

/* After a round every thread waits or is done. Returns whether the block goes on. */
bool release(unsigned count) {
    const Fiber &first = *fibers[0];
    for (unsigned t = 1; t < count; t++) {
        const Fiber &fiber = *fibers[t];
        const bool same_place = fiber.line == first.line && fiber.file == first.file;
        if (fiber.state != first.state || (first.state == WAITING && !same_place))
            divergence(count);
    }
    if (first.state == DONE)
        return false;
    for (unsigned t = 0; t < count; t++)
        fibers[t]->state = RUNNABLE;
    return true;
}

void run_block(unsigned count) {
    static std::vector<unsigned> list;
    if (__start_cusim_shared)
        memset(__start_cusim_shared, 0xff, (size_t)(__stop_cusim_shared - __start_cusim_shared));
    for (unsigned t = 0; t < count; t++) {
        fibers[t]->state = RUNNABLE;
        fibers[t]->thread = dim3(t % blockDim.x, t / blockDim.x % blockDim.y, t / blockDim.x / blockDim.y);
    }
    do
        for (const unsigned t : turns(count, list))
            enter(*fibers[t]);
    while (release(count));
}

} // namespace

void barrier(const char *file, int line) {
    current->state = WAITING;
    current->file = file;
    current->line = line;
    leave();
}

void launch(dim3 grid, dim3 block, const std::function<void()> &body) {
    const uint64_t threads = (uint64_t)block.x * block.y * block.z;
    if (threads < 1 || threads > MAX_THREADS || block.z > 64 || grid.x < 1 || grid.x > 0x7fffffffu || grid.y < 1 ||
        grid.y > 65535 || grid.z < 1 || grid.z > 65535) {
        last_error = cudaErrorInvalidConfiguration;
        return;
    }
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

const char *cudaGetErrorString(cudaError_t error) {
    return error == cudaSuccess ? "no error" : "invalid configuration argument";
}
