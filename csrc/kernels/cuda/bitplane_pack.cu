/* A thread makes a byte of both planes; rows go over gridDim.y, bytes of a plane over gridDim.x. */
#include "../bitplane_pack.h"
#include "../trit_elementwise.h"
#include "launch.cuh"

enum { THREADS = 256 };

/* Byte j of a row, without padding. */
static __device__ unsigned byte_at(const bt_bitplane_pack &p, int64_t row, int64_t j) {
    const int64_t bytes = bt_div_up(p.k, 4);
    const unsigned c = j < bytes ? p.w[row * p.ldw + j] : 0u;
    return j == bytes - 1 ? c & bt_trit_last_mask(p.k) : c;
}

static __global__ void pack(bt_bitplane_pack p) {
    const unsigned LOW = 0x55u;
    const int64_t bytes = bt_div_up(p.k, BT_PLANE_TRITS) * BT_PLANE_BYTES, step = (int64_t)gridDim.x * THREADS;
    for (int64_t row = blockIdx.y; row < p.n; row += gridDim.y)
        for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < bytes; i += step) {
            const int64_t j = i / BT_PLANE_BYTES * BT_PLANE_BLOCK_BYTES + i % BT_PLANE_BYTES;
            const unsigned first = byte_at(p, row, j), second = byte_at(p, row, j + BT_PLANE_BYTES);
            uint8_t *const planes = p.planes + row * p.ldp + j;
            planes[0] = (uint8_t)(BT_TRIT_EITHER(first) | BT_TRIT_HIGH(second | second << 1));
            planes[BT_PLANE_BYTES] = (uint8_t)(BT_TRIT_LOW(first >> 1) | BT_TRIT_HIGH(second));
        }
}

extern "C" bt_status bt_bitplane_pack_cuda_baseline(const bt_bitplane_pack *p, int64_t, int64_t) {
    if (p->n == 0 || p->k == 0)
        return BT_OK;
    const int64_t bytes = bt_div_up(p->k, BT_PLANE_TRITS) * BT_PLANE_BYTES;
    const dim3 grid(bt_blocks(bt_div_up(bytes, THREADS)), bt_blocks(p->n));
    return BT_LAUNCH(pack, grid, dim3(THREADS), p->stream, *p);
}
