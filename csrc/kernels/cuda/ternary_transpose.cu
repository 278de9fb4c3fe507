/* A thread makes a byte of t from a code of each of up to four rows; rows of t go over gridDim.x, which may be long,
 * bytes over gridDim.y. Neighbouring threads read the same bytes of w. */
#include "../ternary_transpose.h"
#include "launch.cuh"

enum { THREADS = 256 };

static __global__ void transpose(bt_ternary_transpose p) {
    const int64_t bytes = bt_div_up(p.n, 4), step = (int64_t)gridDim.x * THREADS;
    for (int64_t j = blockIdx.y; j < bytes; j += gridDim.y)
        for (int64_t c = (int64_t)blockIdx.x * THREADS + threadIdx.x; c < p.k; c += step) {
            unsigned byte = 0;
            for (int i = 0; i < 4 && 4 * j + i < p.n; i++)
                byte |= (p.w[(4 * j + i) * p.ldw + c / 4] >> (2 * (c % 4)) & 3u) << (2 * i);
            p.t[c * p.ldt + j] = (uint8_t)byte;
        }
}

extern "C" bt_status bt_ternary_transpose_cuda_baseline(const bt_ternary_transpose *p, int64_t, int64_t) {
    if (p->n == 0 || p->k == 0)
        return BT_OK;
    const dim3 grid(bt_blocks(bt_div_up(p->k, THREADS)), bt_blocks(bt_div_up(p->n, 4)));
    return BT_LAUNCH(transpose, grid, dim3(THREADS), p->stream, *p);
}
