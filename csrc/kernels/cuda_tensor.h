/* Which problems the kernels cuda_skinny and cuda_bulk take, and how they cut them: plain C, for the launchers and for
 * who picks. */
#ifndef BT_CUDA_TENSOR_H
#define BT_CUDA_TENSOR_H
#include "bt_common.h"
#ifdef __cplusplus
extern "C" {
#endif

enum { BT_SKINNY_COLUMNS = 16, BT_SKINNY_GROUP = 1024, BT_SKINNY_BLOCKS = 264, BT_BULK_GROUP = 1 << 17 };

/* The needs (BT_GPU_*) that a product does not meet. Tensor cores sum steps of 64 columns of k, so a group is a
 * multiple; few columns of activations are staged whole groups at a time, which have to fit. Digits of a token meet
 * only in the end, where a scale group of theirs would have been lost. int32 holds the sum of a long group. */
static inline uint32_t bt_tensor_lacks(int64_t m, int digits, int64_t k, int64_t ldw, const void *w, int64_t group) {
    const int one = group == k, whole = group % 64 == 0;
    return (digits * m <= BT_SKINNY_COLUMNS ? 0u : (uint32_t)BT_GPU_FEW_COLUMNS) |
           (k > 0 && (one || (whole && group <= BT_SKINNY_GROUP)) ? 0u : (uint32_t)BT_GPU_GROUPS) |
           (k > 0 && (one || (whole && digits == 1 && group <= BT_BULK_GROUP)) ? 0u : (uint32_t)BT_GPU_LONG_GROUPS) |
           (ldw % 16 == 0 && (uintptr_t)w % 16 == 0 ? 0u : (uint32_t)BT_GPU_ALIGNED_ROWS);
}

/* Whether decoding w to the type of x and a product by cuBLAS should take less time than a kernel of ours. Without
 * tensor cores for the problem, from 64 tokens on: there the tiled kernel is at a fraction of what cuBLAS does. With
 * them, where mma.sync is not all that the device has (compute capability 9 to 11), from 1024 tokens on: decoding takes
 * 2.25 bytes a weight, and saves a third of the product's time if cuBLAS is at 700 Tflop/s and bulk at 430. Estimates:
 * no device has timed either. */
static inline int bt_unpack_pays(int64_t m, int halves, int sm, uint32_t lacks) {
    const int tensor = halves && sm >= 80 && !(lacks & BT_GPU_BULK);
    return tensor ? m >= 1024 && sm >= 90 && sm < 120 : m >= 64;
}

/* Rows of w in a block. */
static inline int bt_skinny_block_rows(int64_t columns) {
    return columns <= 8 ? 16 : 32;
}

/* Parts that k is cut into: so many that about 264 blocks, two for each multiprocessor of the largest devices, have
 * work, of which each warp keeps two steps; and so few columns of k a warp that int32 holds sums of +-64 * -128. They
 * depend on the shape alone, hence so does the order of the sums. */
static inline int bt_skinny_parts(int64_t columns, int64_t n, int64_t k) {
    const int64_t warps = columns <= 8 ? 8 : 4, steps = bt_div_up(k, 256);
    const int64_t blocks = n > 0 ? bt_div_up(n, bt_skinny_block_rows(columns)) : 1;
    const int64_t wanted = bt_div_up(BT_SKINNY_BLOCKS, blocks), most = steps / (2 * warps);
    const int64_t least = bt_div_up(steps, warps * (262144 / 256 - 1));
    const int64_t parts = wanted < most ? wanted : most;
    return (int)(parts < least ? least : parts);
}

/* The same for many columns: columns and rows of a block. 64 columns, or 32 where more than a sixth of them would be
 * empty; 128 rows, or 256, which read the activations half as often, where all multiprocessors still have two blocks.
 */
static inline int bt_bulk_width(int64_t columns) {
    return columns <= 160 && bt_div_up(columns, 32) % 2 ? 32 : 64;
}

#if !defined(BT_BULK_TALL)
#define BT_BULK_TALL BT_SKINNY_BLOCKS
#endif

static inline int bt_bulk_rows(int64_t columns, int64_t n) {
    const int64_t blocks = bt_div_up(n, 256) * bt_div_up(columns, 64);
    return bt_bulk_width(columns) == 64 && blocks >= BT_BULK_TALL ? 256 : 128;
}

/* Parts of k, of 1024 columns or more. Few columns of activations are cut only as far as int32 asks for it: they come
 * here by name, or with groups that are too long. */
static inline int bt_bulk_parts(int64_t columns, int64_t n, int64_t k) {
    const int64_t stages = bt_div_up(k, 128);
    const int64_t blocks = bt_div_up(n, bt_bulk_rows(columns, n)) * bt_div_up(columns, bt_bulk_width(columns));
    const int64_t wanted = blocks > 0 ? BT_SKINNY_BLOCKS / blocks : 1, most = stages / 8;
    const int64_t least = bt_div_up(stages, 262144 / 128 - 1);
    const int64_t parts = columns <= BT_SKINNY_COLUMNS ? 1 : wanted < most ? wanted : most;
    return (int)(parts < least ? least : parts);
}

/* Bytes of device scratch, aligned to 8; 0 where the kernels do not run. */
static inline size_t bt_tensor_workspace(int64_t columns, int64_t n, int64_t k, int64_t group) {
    const int few = columns <= BT_SKINNY_COLUMNS ? bt_skinny_parts(columns, n, k) : 1;
    const int many = bt_bulk_parts(columns, n, k), parts = few > many ? few : many;
    return group == k && parts > 1 ? 4 * (size_t)(parts * columns * n) : 0;
}

#ifdef __cplusplus
}
#endif
#endif
