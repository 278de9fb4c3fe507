/* A thread makes an element of y: rows of a go over gridDim.y, rows of b over gridDim.x. */
#include "../bitplane_matmul.h"
#include "../bitplane_pack.h"
#include "bits.cuh"
#include "launch.cuh"

enum { THREADS = 64 };

static __global__ void multiply(bt_bitplane_matmul p) {
    const int64_t step = (int64_t)gridDim.x * THREADS;
    for (int64_t i = blockIdx.y; i < p.m; i += gridDim.y)
        for (int64_t j = (int64_t)blockIdx.x * THREADS + threadIdx.x; j < p.n; j += step) {
            const uint8_t *a = p.a + i * p.lda, *b = p.b + j * p.ldb;
            int sum = 0;
            for (int64_t block = 0; block < p.blocks; block++, a += BT_PLANE_BLOCK_BYTES, b += BT_PLANE_BLOCK_BYTES)
                for (int v = 0; v < BT_PLANE_BYTES; v++) {
                    const unsigned m = a[v] & b[v], s = a[BT_PLANE_BYTES + v] ^ b[BT_PLANE_BYTES + v];
                    sum += bt_byte_bits(m) - 2 * bt_byte_bits(m & s);
                }
            p.y[i * p.ldy + j] = sum;
        }
}

extern "C" bt_status bt_bitplane_matmul_cuda_baseline(const bt_bitplane_matmul *p, int64_t, int64_t) {
    if (p->m == 0 || p->n == 0)
        return BT_OK;
    const dim3 grid(bt_blocks(bt_div_up(p->n, THREADS)), bt_blocks(p->m));
    return BT_LAUNCH(multiply, grid, dim3(THREADS), p->stream, *p);
}
