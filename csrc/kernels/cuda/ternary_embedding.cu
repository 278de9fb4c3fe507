/* Rows of y go over gridDim.y, columns over gridDim.x. A thread takes four columns, which are a byte of each plane and
 * have one scale in each, and writes them at once where rows of y allow it. */
#include "../cpu/half.h"
#include "../cpu/trit.h"
#include "../ternary_embedding.h"
#include "launch.cuh"

enum { THREADS = 128 };

/* The columns c .. c + 3 of a row of the table. */
static __device__ void gather(const bt_ternary_embedding &p, int64_t index, int64_t c, float (&value)[4]) {
    double sum[4] = {0.0, 0.0, 0.0, 0.0};
    const int64_t group = p.lds > 1 ? c / p.group : 0;
    for (int d = 0; d < p.depth; d++) {
        const int64_t row = d * p.n + index;
        const unsigned byte = p.w[row * p.ldw + c / 4];
        const float scale = p.scale[row * p.lds + group];
        BT_UNROLL
        for (int i = 0; i < 4; i++) {
            const float product = __fmul_rn((float)bt_trit(byte >> (2 * i) & 3u), scale);
            sum[i] = d ? __dadd_rn(sum[i], (double)product) : (double)product;
        }
    }
    BT_UNROLL
    for (int i = 0; i < 4; i++)
        value[i] = (float)sum[i];
}

struct alignas(8) Halves {
    uint32_t low, high;
};

static __device__ uint32_t two_halves(int type, float low, float high) {
    return type == BT_F16 ? (uint32_t)bt_to_f16(low) | (uint32_t)bt_to_f16(high) << 16
                          : (uint32_t)bt_to_bf16(low) | (uint32_t)bt_to_bf16(high) << 16;
}

static __global__ void embed(bt_ternary_embedding p, bool aligned) {
    const int64_t step = 4 * (int64_t)gridDim.x * THREADS;
    for (int64_t i = blockIdx.y; i < p.m; i += gridDim.y) {
        const int64_t index = p.index[i];
        const bool known = index >= 0 && index < p.n;
        for (int64_t c = 4 * ((int64_t)blockIdx.x * THREADS + threadIdx.x); c < p.k; c += step) {
            const float nan = bt_bits_float(0x7fc00000u);
            float value[4] = {nan, nan, nan, nan};
            if (known)
                gather(p, index, c, value);
            const int64_t at = i * p.ldy + c;
            if (!aligned || c + 4 > p.k)
                for (int64_t j = 0; j < 4 && c + j < p.k; j++)
                    bt_store(p.y, p.y_type, at + j, value[j]);
            else if (p.y_type == BT_F32)
                *(uint4 *)((float *)p.y + at) = {bt_float_bits(value[0]), bt_float_bits(value[1]),
                                                 bt_float_bits(value[2]), bt_float_bits(value[3])};
            else
                *(Halves *)((uint16_t *)p.y + at) = {two_halves(p.y_type, value[0], value[1]),
                                                     two_halves(p.y_type, value[2], value[3])};
        }
    }
}

extern "C" bt_status bt_ternary_embedding_cuda_baseline(const bt_ternary_embedding *p, int64_t, int64_t) {
    if (p->m == 0 || p->k == 0)
        return BT_OK;
    const int64_t bytes = p->y_type == BT_F32 ? 4 : 2;
    const bool aligned = (uintptr_t)p->y % (4 * bytes) == 0 && p->ldy % 4 == 0;
    const dim3 grid(bt_blocks(bt_div_up(p->k, 4 * THREADS)), bt_blocks(p->m));
    return BT_LAUNCH(embed, grid, dim3(THREADS), p->stream, *p, aligned);
}
