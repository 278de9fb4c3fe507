/* The part of CUDA that our kernels use, on the CPU: the same .cu source, compiled as C++.
 *
 * The threads of a block are fibers that change over only at barriers; blocks run one after another. Where two threads
 * race because a barrier is missing, the result depends on who runs first: tests run every case under several orders.
 * Shared memory is filled with 0xff (NaN, -1) before each block, a barrier that some threads do not reach is an error,
 * and launch limits are checked. It cannot see races that need simultaneous threads, alignment faults or speed. */
#ifndef CUSIM_H
#define CUSIM_H

#include <cstdint>
#include <functional>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
/* One section, so that all of it can be filled at once. */
#define __shared__ static __attribute__((section("cusim_shared")))

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {
    }
};

typedef void *cudaStream_t;
typedef enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidConfiguration = 9 } cudaError_t;

cudaError_t cudaGetLastError();
const char *cudaGetErrorString(cudaError_t error);

extern dim3 gridDim, blockDim, blockIdx, threadIdx;

namespace cusim {

enum Order { FORWARD, REVERSE, RANDOM, ORDERS };

/* In which order the runnable threads of a block, and the blocks of a grid, take their turns. */
extern Order order;

void launch(dim3 grid, dim3 block, const std::function<void()> &body);

/* Waits until every thread of the block is at the same line. */
void barrier(const char *file, int line);

} // namespace cusim

#define __syncthreads() cusim::barrier(__FILE__, __LINE__)

/* Single roundings; the emulator is compiled with -ffp-contract=off. */
static inline double __dmul_rn(double a, double b) {
    return a * b;
}
static inline double __dadd_rn(double a, double b) {
    return a + b;
}
static inline double __ddiv_rn(double a, double b) {
    return a / b;
}
static inline float __fmul_rn(float a, float b) {
    return a * b;
}

static inline float __fadd_rn(float a, float b) {
    return a + b;
}

static inline float __fdiv_rn(float a, float b) {
    return a / b;
}

static inline int __dp4a(int a, int b, int sum) {
    for (int i = 0; i < 4; i++)
        sum += (int8_t)(uint8_t)((unsigned)a >> (8 * i)) * (int8_t)(uint8_t)((unsigned)b >> (8 * i));
    return sum;
}

#endif
