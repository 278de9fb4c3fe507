/* How a kernel is started, and what makes the same source run on a device and under the emulator of tests/cuda_host.
 *
 *   BT_LAUNCH(kernel, grid, block, stream, arguments...)      enqueues and gives a bt_status
 *   BT_LAUNCH_SHARED(kernel, bytes, grid, ...)                the same with so many bytes of dynamic shared memory,
 * which the kernel names by BT_DYNAMIC_SHARED
 *
 * Loops over work are grid-stride: BT_CUDA_MAX_BLOCKS bounds a grid in x and in y, where 65535 is the limit of y. */
#ifndef BT_CUDA_LAUNCH_CUH
#define BT_CUDA_LAUNCH_CUH

#include "../bt_common.h"

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#define BT_LAUNCH(kernel, grid, block, stream, ...)                                                                    \
    (kernel<<<(grid), (block), 0, (cudaStream_t)(stream)>>>(__VA_ARGS__), bt_launch_status())
#define BT_LAUNCH_SHARED(kernel, bytes, grid, block, stream, ...)                                                      \
    (bt_allow_shared(kernel, bytes) != cudaSuccess                                                                     \
         ? bt_launch_status()                                                                                          \
         : (kernel<<<(grid), (block), (bytes), (cudaStream_t)(stream)>>>(__VA_ARGS__), bt_launch_status()))
#define BT_DYNAMIC_SHARED(name) extern __shared__ uint4 name[]
#define BT_UNROLL _Pragma("unroll")
#define BT_PRAGMA(text) _Pragma(#text)
#define BT_UNROLL_BY(times) BT_PRAGMA(unroll times)
#define BT_UNROLL_NOT _Pragma("unroll 1")
#else
#include "cusim.h"
#define BT_UNROLL
#define BT_UNROLL_BY(times)
#define BT_UNROLL_NOT
#define BT_LAUNCH(kernel, grid, block, stream, ...)                                                                    \
    (cusim::launch((grid), (block), [&] { kernel(__VA_ARGS__); }), (void)(stream), bt_launch_status())
#define BT_LAUNCH_SHARED(kernel, bytes, grid, block, stream, ...)                                                      \
    (bt_allow_shared(kernel, bytes) != cudaSuccess                                                                     \
         ? bt_launch_status()                                                                                          \
         : (cusim::launch((grid), (block), [&] { kernel(__VA_ARGS__); }, (bytes), (const void *)(kernel)),             \
            (void)(stream), bt_launch_status()))
#define BT_DYNAMIC_SHARED(name) uint4 *const name = (uint4 *)cusim::dynamic_shared()
#endif

#if !defined(BT_CUDA_MAX_BLOCKS)
#define BT_CUDA_MAX_BLOCKS 65535
#endif

static inline bt_status bt_launch_status(void) {
    const cudaError_t error = cudaGetLastError();
    return error == cudaSuccess ? (bt_status)BT_OK : (bt_status)(BT_ERR_CUDA + (int)error);
}

/* More than 48 KiB of dynamic shared memory have to be asked for; every device from sm_80 on has 99. The error, if
 * there is one, is what cudaGetLastError() gives next. */
template <class... Arguments> static inline cudaError_t bt_allow_shared(void (*kernel)(Arguments...), int bytes) {
    return bytes <= 48 * 1024
               ? cudaSuccess
               : cudaFuncSetAttribute((const void *)kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
}

/* Blocks for so many pieces of work, of which there is at least one. */
static inline unsigned bt_blocks(int64_t pieces) {
    return (unsigned)(pieces < BT_CUDA_MAX_BLOCKS ? pieces : BT_CUDA_MAX_BLOCKS);
}

#endif
