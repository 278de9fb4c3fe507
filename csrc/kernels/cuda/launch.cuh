/* How a kernel is started, and what makes the same source run on a device and under the emulator of tests/cuda_host.
 *
 *   BT_LAUNCH(kernel, grid, block, stream, arguments...)      enqueues and gives a bt_status
 *
 * Loops over work are grid-stride: BT_CUDA_MAX_BLOCKS bounds a grid in x and in y, where 65535 is the limit of y. */
#ifndef BT_CUDA_LAUNCH_CUH
#define BT_CUDA_LAUNCH_CUH

#include "../bt_common.h"

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#define BT_LAUNCH(kernel, grid, block, stream, ...)                                                                    \
    (kernel<<<(grid), (block), 0, (cudaStream_t)(stream)>>>(__VA_ARGS__), bt_launch_status())
#define BT_UNROLL _Pragma("unroll")
#define BT_UNROLL_TWICE _Pragma("unroll 2")
#else
#include "cusim.h"
#define BT_UNROLL
#define BT_UNROLL_TWICE
#define BT_LAUNCH(kernel, grid, block, stream, ...)                                                                    \
    (cusim::launch((grid), (block), [&] { kernel(__VA_ARGS__); }), (void)(stream), bt_launch_status())
#endif

#if !defined(BT_CUDA_MAX_BLOCKS)
#define BT_CUDA_MAX_BLOCKS 65535
#endif

static inline bt_status bt_launch_status(void) {
    const cudaError_t error = cudaGetLastError();
    return error == cudaSuccess ? (bt_status)BT_OK : (bt_status)(BT_ERR_CUDA + (int)error);
}

/* Blocks for so many pieces of work, of which there is at least one. */
static inline unsigned bt_blocks(int64_t pieces) {
    return (unsigned)(pieces < BT_CUDA_MAX_BLOCKS ? pieces : BT_CUDA_MAX_BLOCKS);
}

#endif
