/* A thread writes a value of y; rows go over gridDim.y, columns over gridDim.x. */
#include "../cpu/half.h"
#include "../cpu/trit.h"
#include "../ternary_unpack.h"
#include "launch.cuh"

enum { THREADS = 256 };

static __global__ void unpack(bt_ternary_unpack p) {
    const int64_t step = (int64_t)gridDim.x * THREADS;
    for (int64_t row = blockIdx.y; row < p.n; row += gridDim.y)
        for (int64_t c = (int64_t)blockIdx.x * THREADS + threadIdx.x; c < p.k; c += step) {
            const int trit = bt_trit_at(p.w + row * p.ldw, c);
            if (p.y_type == BT_I8) {
                ((int8_t *)p.y)[row * p.ldy + c] = (int8_t)trit;
                continue;
            }
            const int64_t group = p.lds > 1 ? c / p.group : 0;
            const float scale = p.scale ? p.scale[row * p.lds + group] : 1.0f;
            bt_store(p.y, p.y_type, row * p.ldy + c, __fmul_rn((float)trit, scale));
        }
}

extern "C" bt_status bt_ternary_unpack_cuda_baseline(const bt_ternary_unpack *p, int64_t, int64_t) {
    if (p->n == 0 || p->k == 0)
        return BT_OK;
    const dim3 grid(bt_blocks(bt_div_up(p->k, THREADS)), bt_blocks(p->n));
    return BT_LAUNCH(unpack, grid, dim3(THREADS), p->stream, *p);
}
