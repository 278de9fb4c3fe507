/* One value from all threads of a block, as a tree of fixed shape: t + (t + width) for width = blockDim.x / 2 .. 1.
 *
 * blockDim.x is a power of two, scratch holds one value a thread in shared memory and may be reused at once. Every
 * thread gets the result. */
#ifndef BT_CUDA_REDUCE_CUH
#define BT_CUDA_REDUCE_CUH

#include "launch.cuh"

enum { BT_MAX_THREADS = 256 };

/* Threads of a block for so many pieces of work. */
static inline unsigned bt_block_threads(int64_t pieces) {
    unsigned threads = 32;
    while (threads < BT_MAX_THREADS && threads < pieces)
        threads *= 2;
    return threads;
}

template <class T, class Combine> static __device__ inline T bt_block_reduce(T value, T *scratch, Combine combine) {
    const unsigned t = threadIdx.x;
    scratch[t] = value;
    __syncthreads();
    for (unsigned width = blockDim.x / 2; width > 0; width /= 2) {
        if (t < width)
            scratch[t] = combine(scratch[t], scratch[t + width]);
        __syncthreads();
    }
    const T result = scratch[0];
    __syncthreads();
    return result;
}

#endif
