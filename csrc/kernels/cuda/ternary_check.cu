/* A block takes a row: every thread finds the first illegal column of its bytes, the block their minimum. */
#include "../ternary_check.h"
#include "reduce.cuh"

/* The first illegal column of byte j, or k + 4 when there is none. */
static __device__ int64_t illegal_in(unsigned byte, int64_t j, int64_t k) {
    for (int i = 0; i < 4; i++) {
        const unsigned code = byte >> (2 * i) & 3u;
        if (code == 3u || (4 * j + i >= k && code != 0u))
            return 4 * j + i;
    }
    return k + 4;
}

static __global__ void check(bt_ternary_check p) {
    __shared__ int64_t scratch[BT_MAX_THREADS];
    const int64_t bytes = bt_div_up(p.k, 4), none = p.k + 4;
    for (int64_t row = blockIdx.x; row < p.n; row += gridDim.x) {
        int64_t first = none;
        for (int64_t j = threadIdx.x; j < bytes && first == none; j += blockDim.x)
            first = illegal_in(p.w[row * p.ldw + j], j, p.k);
        first = bt_block_reduce(first, scratch, [](int64_t a, int64_t b) { return a < b ? a : b; });
        if (threadIdx.x == 0)
            p.column[row] = first == none ? -1 : first;
    }
}

extern "C" bt_status bt_ternary_check_cuda_baseline(const bt_ternary_check *p, int64_t, int64_t) {
    if (p->n == 0)
        return BT_OK;
    return BT_LAUNCH(check, dim3(bt_blocks(p->n)), dim3(bt_block_threads(bt_div_up(p->k, 4))), p->stream, *p);
}
