/* Which problems the kernels cuda_skinny and cuda_bulk take, and how they cut them: plain C, for the launchers and for
 * who picks. */
#ifndef BT_CUDA_TENSOR_H
#define BT_CUDA_TENSOR_H
#include "bt_common.h"
#ifdef __cplusplus
extern "C" {
#endif

enum { BT_SKINNY_COLUMNS = 16, BT_SKINNY_GROUP = 1024, BT_SKINNY_BLOCKS = 264 };

/* The needs (BT_GPU_*) that a product does not meet. Tensor cores sum steps of 64 columns of k, so a group is a
 * multiple; few columns of activations are staged whole groups at a time, which have to fit. Digits of a token meet
 * only in the end, where a scale group of theirs would have been lost. */
static inline uint32_t bt_tensor_lacks(int64_t m, int digits, int64_t k, int64_t ldw, const void *w, int64_t group) {
    const int one = group == k, whole = group % 64 == 0;
    return (digits * m <= BT_SKINNY_COLUMNS ? 0u : (uint32_t)BT_GPU_FEW_COLUMNS) |
           (k > 0 && (one || (whole && group <= BT_SKINNY_GROUP)) ? 0u : (uint32_t)BT_GPU_GROUPS) |
           (k > 0 && (one || (whole && digits == 1)) ? 0u : (uint32_t)BT_GPU_LONG_GROUPS) |
           (ldw % 16 == 0 && (uintptr_t)w % 16 == 0 ? 0u : (uint32_t)BT_GPU_ALIGNED_ROWS);
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

/* The same for many columns, blocks of 128 rows by 48 columns or fewer, of which a warp has 16 rows and all of k. Few
 * columns are cut only as far as int32 asks for it: they come here by name, or with groups that are too long. */
enum { BT_BULK_ROWS = 128, BT_BULK_COLUMNS = 48 };

static inline int bt_bulk_parts(int64_t columns, int64_t n, int64_t k) {
    const int64_t steps = bt_div_up(k, 256);
    const int64_t blocks = bt_div_up(n, BT_BULK_ROWS) * bt_div_up(columns, BT_BULK_COLUMNS);
    const int64_t wanted = blocks > 0 ? BT_SKINNY_BLOCKS / blocks : 1, most = steps / 4;
    const int64_t least = bt_div_up(steps, 262144 / 256 - 1);
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
