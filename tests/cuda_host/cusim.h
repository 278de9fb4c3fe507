/* The part of CUDA that our kernels use, on the CPU: the same .cu source, compiled as C++.
 *
 * The threads of a block are fibers that change over only at barriers, of the block or of a warp; blocks run one after
 * another. Where two threads race because a barrier is missing, the result depends on who runs first: tests run every
 * case under several orders. Shared memory is filled with 0xff (NaN, -1) before each block, a barrier that some threads
 * do not reach is an error, launch limits are checked, and so is the alignment of the wide loads of ptx.cuh. Copies to
 * shared memory arrive when they are waited for. It cannot
 * see races that need simultaneous threads, how a tensor core rounds, or speed. */
#ifndef CUSIM_H
#define CUSIM_H

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
/* One section, so that all of it can be filled at once. */
#define __shared__ static __attribute__((section("cusim_shared")))

struct alignas(16) uint4 {
    uint32_t x, y, z, w;
};

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {
    }
};

typedef void *cudaStream_t;
typedef enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorInvalidConfiguration = 9,
    cudaErrorNoDevice = 100
} cudaError_t;

/* The one device has compute capability 8.0. */
enum { cudaDevAttrComputeCapabilityMajor = 75, cudaDevAttrComputeCapabilityMinor = 76 };
enum { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };

cudaError_t cudaGetLastError();
cudaError_t cudaGetDevice(int *device);
cudaError_t cudaDeviceGetAttribute(int *value, int attribute, int device);
const char *cudaGetErrorString(cudaError_t error);
cudaError_t cudaFuncSetAttribute(const void *kernel, int attribute, int value);

extern dim3 gridDim, blockDim, blockIdx, threadIdx;

namespace cusim {

enum Order { FORWARD, REVERSE, RANDOM, ORDERS };

/* In which order the runnable threads of a block, and the blocks of a grid, take their turns. */
extern Order order;

/* Whether the device answers; else asking for it is an error, which stays until cudaGetLastError() takes it. */
extern bool has_device;

/* `shared` bytes of dynamic shared memory: up to 48 KiB, or what cudaFuncSetAttribute() allowed this kernel. */
void launch(dim3 grid, dim3 block, const std::function<void()> &body, size_t shared = 0, const void *kernel = nullptr);

/* The dynamic shared memory of the block, aligned to 16 bytes. */
void *dynamic_shared();

/* cp.async of 16 bytes. The target is poison from here on until the thread waits, and only then is the source read: a
 * wait that is missing, or that comes too late for others, shows. Both have to be aligned. A thread that ends with
 * copies under way ends the program. */
void copy_async(void *to, const void *from);
void copy_commit();
void copy_wait(unsigned groups); /* until at most so many of the groups that were committed are under way */

/* Waits until every thread of the block, or of the warp, is at the same line. */
void barrier(const char *file, int line);
void warp_barrier(const char *file, int line);

/* The instruction mma.sync of a warp, d += a b, with the fragments of the PTX ISA. In them lane 4 g + t holds of the
 * 16 x k matrix a and the k x 8 matrix b
 *     m16n8k32, bytes      a[i] byte j: row g + 8 (i & 1), k = 16 (i >> 1) + 4 t + j;   b[i]: k = 16 i + 4 t + j,
 * column g m16n8k16, halves     a[i] half j: row g + 8 (i & 1), k = 8 (i >> 1) + 2 t + j;    b[i]: k = 8 i + 2 t + j,
 * column g and of the sums d[i]: row g + 8 (i >> 1), column 2 t + (i & 1). */
void mma_s8(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);

/* Ends the program unless the address is a multiple of `bytes`. */
void check_alignment(const void *address, unsigned bytes);

} // namespace cusim

#define __syncthreads() cusim::barrier(__FILE__, __LINE__)
#define __syncwarp() cusim::warp_barrier(__FILE__, __LINE__)

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
static inline double __dsqrt_rn(double a) {
    return sqrt(a);
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

/* Four bytes of the eight of (b, a), each chosen by three bits of a nibble of `selector`. */
static inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
    const uint64_t bytes = (uint64_t)b << 32 | a;
    unsigned result = 0;
    for (int i = 0; i < 4; i++)
        result |= (unsigned)(bytes >> (8 * (selector >> (4 * i) & 7)) & 0xff) << (8 * i);
    return result;
}

static inline int __dp4a(int a, int b, int sum) {
    for (int i = 0; i < 4; i++)
        sum += (int8_t)(uint8_t)((unsigned)a >> (8 * i)) * (int8_t)(uint8_t)((unsigned)b >> (8 * i));
    return sum;
}

#endif
