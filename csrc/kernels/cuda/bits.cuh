/* Counting the bits of a byte. */
#ifndef BT_CUDA_BITS_CUH
#define BT_CUDA_BITS_CUH

#include "launch.cuh"

static __device__ inline int bt_byte_bits(unsigned v) {
    v = (v & 0x55u) + (v >> 1 & 0x55u);
    v = (v & 0x33u) + (v >> 2 & 0x33u);
    return (int)((v & 15u) + (v >> 4));
}

#endif
