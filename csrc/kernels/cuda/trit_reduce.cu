/* A block counts a tile: every thread its bytes, the block their sum. */
#include "../trit_elementwise.h"
#include "../trit_reduce.h"
#include "bits.cuh"
#include "reduce.cuh"

static __global__ void count(bt_trit_reduce p) {
    __shared__ int64_t scratch[BT_MAX_THREADS];
    const unsigned LOW = 0x55u;
    const int64_t chunks = bt_reduce_chunks(p.k), row_bytes = bt_div_up(p.k, 4), tiles = p.n * chunks;
    for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const int64_t row = tile / chunks, begin = tile % chunks * BT_REDUCE_CHUNK;
        const int64_t end = row_bytes - begin < BT_REDUCE_CHUNK ? row_bytes : begin + BT_REDUCE_CHUNK;
        int64_t plus = 0, minus = 0;
        for (int64_t j = begin + threadIdx.x; j < end; j += blockDim.x) {
            const unsigned mask = j == row_bytes - 1 ? bt_trit_last_mask(p.k) : 0xffu;
            const unsigned a = p.a[row * p.lda + j] & mask, b = p.b ? p.b[row * p.ldb + j] : 0u;
            plus += bt_byte_bits(p.b ? a & b : BT_TRIT_LOW(a));
            minus += bt_byte_bits(p.b ? a & BT_TRIT_SWAP(b) : BT_TRIT_HIGH(a));
        }
        const auto add = [](int64_t a, int64_t b) { return a + b; };
        plus = bt_block_reduce(plus, scratch, add);
        minus = bt_block_reduce(minus, scratch, add);
        if (threadIdx.x == 0) {
            p.counts[2 * tile] = plus;
            p.counts[2 * tile + 1] = minus;
        }
    }
}

extern "C" bt_status bt_trit_reduce_cuda_baseline(const bt_trit_reduce *p, int64_t, int64_t) {
    if (p->n == 0)
        return BT_OK;
    const unsigned threads = bt_block_threads(bt_div_up(p->k, 4));
    return BT_LAUNCH(count, dim3(bt_blocks(p->n * bt_reduce_chunks(p->k))), dim3(threads), p->stream, *p);
}
