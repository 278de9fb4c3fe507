/* Types, status codes and list helpers that every kernel shares. Plain C11, also valid C++17.
 *
 * A kernel is a pure function of one params struct: no allocation, no threads, no globals, no getenv, no printing.
 * CPU kernels work on tiles [begin, end) on the calling thread; CUDA launchers ignore the range, work on the whole
 * problem and enqueue on `stream`. CPU kernels cannot fail and return BT_OK. Preconditions are checked by csrc/dispatch
 * and only asserted here. */
#ifndef BT_COMMON_H
#define BT_COMMON_H

#include "isa.h"

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef int bt_status; /* BT_OK, one of the errors below, or BT_ERR_CUDA + cudaError_t */
enum {
    BT_OK = 0,
    BT_ERR_PROBLEM = 1,   /* a CUDA kernel that does not take the problem; nothing was written */
    BT_ERR_WORKSPACE = 2, /* too few bytes of device scratch; nothing was written */
    BT_ERR_CUDA = 1000
};

enum { BT_F32 = 0, BT_F16 = 1, BT_BF16 = 2, BT_I8 = 3 }; /* element types */
enum { BT_CPU = 0, BT_GPU = 1 };                         /* devices of the kernel table */

/* Sets of element types, for the `dtypes` column of the kernel lists. */
#define BT_SET(type) (1u << (type))
#define BT_FLOATS (BT_SET(BT_F32) | BT_SET(BT_F16) | BT_SET(BT_BF16))

#define BT_ISA_BIT(constant, ...) BT_CPU_##constant = 1 << BT_ISA_##constant,

/* The last column of a kernel list, in one word. */
enum {
    /* What a CPU kernel needs: BT_CPU_AVX2 and so on, which cpu_features.c fills. */
    BT_ISAS(BT_ISA_BIT) BT_CPU_NONE = 0,

    /* What a CUDA kernel needs of its device and of the problem; bt_pick() weighs them. */
    BT_GPU_SM80 = 1 << 16,         /* compute capability 8.0 */
    BT_GPU_FEW_COLUMNS = 1 << 17,  /* at most 16 rows of activations, each digit of a token being one */
    BT_GPU_GROUPS = 1 << 18,       /* k > 0; a scale a row or for all, or groups of a multiple of 64 up to 1024 */
    BT_GPU_ALIGNED_ROWS = 1 << 19, /* rows of w begin at multiples of 16 bytes */
    BT_GPU_LONG_GROUPS = 1 << 20,  /* the same with groups of any length, but of one digit a token */
    BT_GPU_UNPACK = 1 << 21,       /* decoding the weight for a library's product pays, see bt_unpack_pays() */
    BT_GPU_NEEDS = 63 << 16,
    BT_GPU_BULK = BT_GPU_SM80 | BT_GPU_LONG_GROUPS | BT_GPU_ALIGNED_ROWS,
    BT_GPU_SKINNY = BT_GPU_SM80 | BT_GPU_FEW_COLUMNS | BT_GPU_GROUPS | BT_GPU_ALIGNED_ROWS,

    /* How a kernel reads its activations, where its op leaves a choice. */
    BT_READS_PAIRS = 1 << 24,      /* ternary_linear_packed: pair order, bf16 */
    BT_READS_NATURAL_8 = 1 << 25,  /* natural order too, for short rows, of which a vector holds 8 */
    BT_READS_NATURAL_16 = 1 << 26, /* the same, 16 */
    BT_READS_STRIDE4 = 1 << 27,    /* ternary_linear_w2a8: codes with stride 4 too */
    BT_READS = 15 << 24
};

/* Rows of a kernel list that exist only in some builds. */
#if defined(__x86_64__)
#define BT_ON_X86(row) row
#else
#define BT_ON_X86(row)
#endif
#if defined(__aarch64__)
#define BT_ON_ARM(row) row
#else
#define BT_ON_ARM(row)
#endif
#if defined(BT_WITH_CUDA)
#define BT_ON_CUDA(row) row
#else
#define BT_ON_CUDA(row)
#endif

/* What the library of kernels shows to its shim; everything else in it is hidden. */
#define BT_EXPORT __attribute__((visibility("default")))

/* Helpers that CPU and CUDA code share. */
#if defined(__CUDACC__)
#define BT_INLINE static __host__ __device__ inline
#else
#define BT_INLINE static inline
#endif

/* Prototype of one list row; instantiated in each op's header. */
#define BT_DECLARE_KERNEL(op, device, dtypes, variant, needs) bt_##op##_fn bt_##op##_##variant;

#if !defined(NDEBUG)
#include <assert.h>
#define BT_ASSERT(condition) assert(condition)
#else
#define BT_ASSERT(condition) ((void)0)
#endif

/* Products of m tokens by n rows are cut into tiles of BT_TILE_M x BT_TILE_N; consecutive tiles share their tokens.
 * 64 tokens of int8 activations at K = 4096 are 256 KiB: they stay in L2 while the rows of the tile stream past. */
enum { BT_TILE_M = 64, BT_TILE_N = 64 };

typedef struct bt_tile {
    int64_t m0, m1, n0, n1;
} bt_tile;

/* ceil(a / b); csrc/dispatch has checked that a + b is an int64. */
BT_INLINE int64_t bt_div_up(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}

static inline int64_t bt_tiles(int64_t m, int64_t n) {
    return bt_div_up(m, BT_TILE_M) * bt_div_up(n, BT_TILE_N);
}

static inline bt_tile bt_tile_at(int64_t m, int64_t n, int64_t index) {
    const int64_t across = bt_div_up(n, BT_TILE_N);
    bt_tile t;
    t.m0 = index / across * BT_TILE_M;
    t.n0 = index % across * BT_TILE_N;
    t.m1 = t.m0 + BT_TILE_M < m ? t.m0 + BT_TILE_M : m;
    t.n1 = t.n0 + BT_TILE_N < n ? t.n0 + BT_TILE_N : n;
    return t;
}

#ifdef __cplusplus
}
#endif
#endif
