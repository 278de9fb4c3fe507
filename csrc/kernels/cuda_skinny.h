/* Which problems the kernels cuda_skinny take, and how they cut them: plain C, for the launchers and for who picks. */
#ifndef BT_CUDA_SKINNY_H
#define BT_CUDA_SKINNY_H
#include "bt_common.h"
#ifdef __cplusplus
extern "C" {
#endif

enum { BT_SKINNY_COLUMNS = 16, BT_SKINNY_GROUP = 1024, BT_SKINNY_BLOCKS = 264 };

/* The needs (BT_GPU_*) that a problem with so many columns of activations, digits * m, does not meet. Groups end with a
 * step of 64 columns of k, and one must fit into the shared memory of a block. */
static inline uint32_t bt_skinny_lacks(int64_t columns, int64_t k, int64_t ldw, const void *w, int64_t group) {
    const int whole = group == k || (group % 64 == 0 && group <= BT_SKINNY_GROUP);
    return (columns <= BT_SKINNY_COLUMNS ? 0u : (uint32_t)BT_GPU_FEW_COLUMNS) |
           (k > 0 && whole ? 0u : (uint32_t)BT_GPU_GROUPS) |
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

/* Bytes of device scratch, aligned to 8; 0 where the kernels do not run. */
static inline size_t bt_skinny_workspace(int64_t columns, int64_t n, int64_t k, int64_t group) {
    const int parts = columns <= BT_SKINNY_COLUMNS && group == k ? bt_skinny_parts(columns, n, k) : 1;
    return parts > 1 ? 4 * (size_t)(parts * columns * n) : 0;
}

#ifdef __cplusplus
}
#endif
#endif
