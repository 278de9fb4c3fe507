/* A thread makes a byte of packed from up to four codes of its row; rows go over gridDim.y, bytes over gridDim.x. */
#include "../ternary_pack.h"
#include "launch.cuh"

enum { THREADS = 256 };

static __device__ unsigned encode(int8_t trit) {
    return trit == 0 ? 0u : trit == 1 ? 1u : trit == -1 ? 2u : 3u;
}

static __global__ void pack(bt_ternary_pack p) {
    const int64_t bytes = bt_div_up(p.k, 4), step = (int64_t)gridDim.x * THREADS;
    for (int64_t row = blockIdx.y; row < p.n; row += gridDim.y)
        for (int64_t j = (int64_t)blockIdx.x * THREADS + threadIdx.x; j < bytes; j += step) {
            const int8_t *codes = p.codes + row * p.ldc + 4 * j;
            unsigned byte = 0;
            for (int i = 0; i < 4 && 4 * j + i < p.k; i++)
                byte |= encode(codes[i]) << (2 * i);
            p.packed[row * p.ldw + j] = (uint8_t)byte;
        }
}

extern "C" bt_status bt_ternary_pack_cuda_baseline(const bt_ternary_pack *p, int64_t, int64_t) {
    if (p->n == 0 || p->k == 0)
        return BT_OK;
    const dim3 grid(bt_blocks(bt_div_up(bt_div_up(p->k, 4), THREADS)), bt_blocks(p->n));
    return BT_LAUNCH(pack, grid, dim3(THREADS), p->stream, *p);
}
