/* A thread makes a byte of y; rows go over gridDim.y, bytes over gridDim.x. */
#include "../trit_elementwise.h"
#include "launch.cuh"

enum { THREADS = 256 };

static __device__ unsigned apply(int function, unsigned a, unsigned b) {
    const unsigned LOW = 0x55u;
#define CASE(name, operands, codes)                                                                                    \
    case BT_TRIT_##name:                                                                                               \
        return codes;
    switch (function) { BT_TRIT_FUNCTIONS(CASE) }
#undef CASE
    return 0;
}

static __global__ void each_byte(bt_trit_elementwise p) {
    const int64_t bytes = bt_div_up(p.k, 4), step = (int64_t)gridDim.x * THREADS;
    for (int64_t row = blockIdx.y; row < p.n; row += gridDim.y)
        for (int64_t j = (int64_t)blockIdx.x * THREADS + threadIdx.x; j < bytes; j += step) {
            const unsigned a = p.a[row * p.lda + j], b = p.b ? p.b[row * p.ldb + j] : 0u;
            const unsigned y = apply(p.function, a, b);
            p.y[row * p.ldy + j] = (uint8_t)(j == bytes - 1 ? y & bt_trit_last_mask(p.k) : y);
        }
}

extern "C" bt_status bt_trit_elementwise_cuda_baseline(const bt_trit_elementwise *p, int64_t, int64_t) {
    if (p->n == 0 || p->k == 0)
        return BT_OK;
    const dim3 grid(bt_blocks(bt_div_up(bt_div_up(p->k, 4), THREADS)), bt_blocks(p->n));
    return BT_LAUNCH(each_byte, grid, dim3(THREADS), p->stream, *p);
}
