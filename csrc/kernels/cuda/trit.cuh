/* The 2-bit code on a device, as cpu/trit.h has it: 00 = 0, 01 = +1, 10 = -1, four weights a byte from the least
 * significant bits up. */
#ifndef BT_CUDA_TRIT_CUH
#define BT_CUDA_TRIT_CUH

#include "launch.cuh"

/* Low bit minus high bit. */
static __device__ inline int bt_cuda_trit(unsigned code) {
    return (int)(code & 1u) - (int)(code >> 1 & 1u);
}

static __device__ inline int bt_cuda_trit_at(const uint8_t *row, int64_t k) {
    return bt_cuda_trit((unsigned)row[k >> 2] >> (2 * (int)(k & 3)));
}

#endif
