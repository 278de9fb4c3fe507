/* The instructions that CUDA C has no name for, one wrapper each. Under the emulator a wrapper is its twin in
 * tests/cuda_host/cusim.h, where the fragments of mma.sync are drawn. Those of sm_80 end the kernel in code for an
 * older device, so that a build for one has the other kernels: who picks needs BT_GPU_SM80 for these. */
#ifndef BT_CUDA_PTX_CUH
#define BT_CUDA_PTX_CUH

#include "launch.cuh"

#if defined(__CUDACC__)

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#define BT_SM80(...) __trap()
#else
#define BT_SM80(...) __VA_ARGS__
#endif

#define BT_MMA(name, sum, constraint, shape)                                                                           \
    static __device__ __forceinline__ void name(sum(&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {          \
        BT_SM80(asm("mma.sync.aligned." shape                                                                          \
                    " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" : constraint(d[0]),             \
                    constraint(d[1]), constraint(d[2]), constraint(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), \
                    "r"(b[0]), "r"(b[1])));                                                                            \
    }

BT_MMA(bt_mma_s8, int, "+r", "m16n8k32.row.col.s32.s8.s8.s32")
BT_MMA(bt_mma_f16, float, "+f", "m16n8k16.row.col.f32.f16.f16.f32")
BT_MMA(bt_mma_bf16, float, "+f", "m16n8k16.row.col.f32.bf16.bf16.f32")
#undef BT_MMA

/* 16 bytes that are read once: they do not displace others from L1. For memory that no kernel in flight writes. */
static __device__ __forceinline__ uint4 bt_load_once(const void *from) {
    uint4 v;
    asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
        : "l"(from));
    return v;
}

/* 16 bytes to shared memory, past L1 and the registers. They are there for this thread when it has waited for the group
 * that they were committed in, and for the block at the barrier after that. */
static __device__ __forceinline__ void bt_copy_async(void *to, const void *from) {
    BT_SM80(asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"((unsigned)__cvta_generic_to_shared(to)),
                         "l"(from) : "memory"));
}

static __device__ __forceinline__ void bt_copy_commit() {
    BT_SM80(asm volatile("cp.async.commit_group;" :: : "memory"));
}

/* Until at most GROUPS of this thread's groups are under way. */
template <int GROUPS> static __device__ __forceinline__ void bt_copy_wait() {
    BT_SM80(asm volatile("cp.async.wait_group %0;" ::"n"(GROUPS) : "memory"));
}

#undef BT_SM80
#else

static inline void bt_copy_async(void *to, const void *from) {
    cusim::copy_async(to, from);
}

static inline void bt_copy_commit() {
    cusim::copy_commit();
}

template <int GROUPS> static inline void bt_copy_wait() {
    cusim::copy_wait(GROUPS);
}

static inline void bt_mma_s8(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    cusim::mma_s8(d, a, b);
}

static inline void bt_mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    cusim::mma_f16(d, a, b);
}

static inline void bt_mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    cusim::mma_bf16(d, a, b);
}

static inline uint4 bt_load_once(const void *from) {
    cusim::check_alignment(from, 16);
    return *(const uint4 *)from;
}

#endif
#endif
