/* Floating activations times packed ternary weights, fp32 sums in rising order of k inside a scale group.
 *
 * baseline  a thread makes an output.
 * tiled     a block of 32 x 8 threads makes 32 rows of w by 32 tokens; it brings 64 columns at a time to shared memory
 *           as floats, in rows of 65 so that 32 rows lie in 32 banks. Thread (tx, ty) has row tx and tokens ty + 8 j.
 * skinny    at most 16 tokens of halves on tensor cores, see skinny.cuh; bulk.cuh has it for more. A weight is +-2, in
 * fp16 and in bf16 the code in the upper two bits, so sums are twice as large; the order of the sums is that of
 * skinny.cuh.
 *
 * Steps of k start at a scale group, hence at a multiple of 4. Code times x is exact, so fmaf rounds as the sum of
 * products does; every other operation is rounded on its own. */
#include "../cpu/half.h"
#include "../cpu/trit.h"
#include "../ternary_linear_packed.h"
#include "bulk.cuh"

#include <math.h>

enum { THREADS = 128, TILE = 32, STEP = 64, LANES = 8, TOKENS = TILE / LANES };

static __global__ void baseline(bt_ternary_linear_packed p) {
    const int64_t step = (int64_t)gridDim.x * THREADS;
    for (int64_t i = blockIdx.y; i < p.m; i += gridDim.y)
        for (int64_t r = (int64_t)blockIdx.x * THREADS + threadIdx.x; r < p.n; r += step) {
            const uint8_t *w = p.w + r * p.ldw;
            const float *scale = p.scale + r * p.lds;
            float sum = 0.0f;
            for (int64_t begin = 0; begin < p.k; begin += p.group) {
                float dot = 0.0f;
                for (int64_t k = begin; k < begin + p.group; k++)
                    dot = fmaf((float)bt_trit_at(w, k), bt_load(p.x, p.x_type, i * p.ldx + k), dot);
                sum = __fadd_rn(sum, __fmul_rn(dot, *scale++));
            }
            bt_finish(p.y, p.y_type, i * p.ldy + r, sum, p.bias, p.bias_type, r);
        }
}

/* Columns [k0, k0 + length) of 32 tokens and of 32 rows; zeros where there is no token or row. */
static __device__ void load_step(const bt_ternary_linear_packed &p, int64_t i0, int64_t r0, int64_t k0, int length,
                                 float (*xs)[STEP + 1], float (*ws)[STEP + 1]) {
    for (int at = (int)(threadIdx.y * TILE + threadIdx.x); at < TILE * STEP; at += TILE * LANES) {
        const int line = at / STEP, c = at % STEP;
        const bool inside = c < length;
        const bool token = inside && i0 + line < p.m, row = inside && r0 + line < p.n;
        xs[line][c] = token ? bt_load(p.x, p.x_type, (i0 + line) * p.ldx + k0 + c) : 0.0f;
        ws[line][c] = row ? (float)bt_trit_at(p.w + (r0 + line) * p.ldw, k0 + c) : 0.0f;
    }
}

static __device__ void multiply_step(int length, const float (*xs)[STEP + 1], const float (*ws)[STEP + 1], float *dot) {
    for (int c = 0; c < length; c++) {
        const float w = ws[threadIdx.x][c];
        for (int j = 0; j < TOKENS; j++)
            dot[j] = fmaf(w, xs[threadIdx.y + LANES * j][c], dot[j]);
    }
}

static __device__ void tile(const bt_ternary_linear_packed &p, int64_t i0, int64_t r0, float (*xs)[STEP + 1],
                            float (*ws)[STEP + 1]) {
    const int64_t r = r0 + threadIdx.x;
    float sum[TOKENS] = {0};
    for (int64_t begin = 0, g = 0; begin < p.k; begin += p.group, g++) {
        const int64_t end = begin + p.group;
        float dot[TOKENS] = {0};
        for (int64_t k0 = begin; k0 < end; k0 += STEP) {
            const int length = end - k0 < STEP ? (int)(end - k0) : (int)STEP;
            load_step(p, i0, r0, k0, length, xs, ws);
            __syncthreads();
            multiply_step(length, xs, ws, dot);
            __syncthreads();
        }
        const float scale = r < p.n ? p.scale[r * p.lds + g] : 0.0f;
        for (int j = 0; j < TOKENS; j++)
            sum[j] = __fadd_rn(sum[j], __fmul_rn(dot[j], scale));
    }
    for (int j = 0; j < TOKENS; j++) {
        const int64_t i = i0 + threadIdx.y + LANES * j;
        if (i < p.m && r < p.n)
            bt_finish(p.y, p.y_type, i * p.ldy + r, sum[j], p.bias, p.bias_type, r);
    }
}

static __global__ void tiled(bt_ternary_linear_packed p) {
    __shared__ float xs[TILE][STEP + 1], ws[TILE][STEP + 1];
    const int64_t across = bt_div_up(p.n, TILE), tiles = across * bt_div_up(p.m, TILE);
    for (int64_t index = blockIdx.x; index < tiles; index += gridDim.x)
        tile(p, index / across * TILE, index % across * TILE, xs, ws);
}

namespace {

/* fp16 or bf16. */
template <int TYPE> struct Halves {
    typedef bt_ternary_linear_packed Params;
    typedef float Sum;
    enum { UNITS = 2 };
    struct Total {
        float sum;
    };

    static __host__ __device__ int digits(const Params &) {
        return 1;
    }
    static __host__ __device__ const void *x(const Params &p, int64_t column) {
        return (const uint16_t *)p.x + column * p.ldx;
    }

    static __host__ __device__ int64_t columns(const Params &p) {
        return p.k;
    }
    static __device__ bool arranged(const Params &) {
        return false;
    }

    /* Operand j has the pair of weights j and j + 8 of a word, so the pairs of x are made the same. */
    static __device__ uint4 pairs(uint32_t x01, uint32_t x89, uint32_t x23, uint32_t xab) {
        return {__byte_perm(x01, x89, 0x5410), __byte_perm(x01, x89, 0x7632), __byte_perm(x23, xab, 0x5410),
                __byte_perm(x23, xab, 0x7632)};
    }
    static __device__ void arrange(const uint4 (&in)[2], uint4 (&out)[2]) {
        out[0] = pairs(in[0].x, in[1].x, in[0].y, in[1].y);
        out[1] = pairs(in[0].z, in[1].z, in[0].w, in[1].w);
    }

    /* 00, 01, 10 become 00, 01, 11, and these as the upper two bits of a half are 0, 2, -2. */
    static __device__ void multiply(float (&sum)[4], uint32_t low, uint32_t high, const uint4 (&x)[2]) {
        const uint32_t l = low | (low >> 1 & 0x55555555u), h = high | (high >> 1 & 0x55555555u);
        quarter(sum, l << 14, h << 14, l << 12, h << 12, x[0].x, x[0].y);
        quarter(sum, l << 10, h << 10, l << 8, h << 8, x[0].z, x[0].w);
        quarter(sum, l << 6, h << 6, l << 4, h << 4, x[1].x, x[1].y);
        quarter(sum, l << 2, h << 2, l, h, x[1].z, x[1].w);
    }
    static __device__ void quarter(float (&sum)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                   uint32_t b1) {
        const uint32_t mask = 0xc000c000u, a[4] = {a0 & mask, a1 & mask, a2 & mask, a3 & mask}, b[2] = {b0, b1};
        if (TYPE == BT_F16)
            bt_mma_f16(sum, a, b);
        else
            bt_mma_bf16(sum, a, b);
    }
    static __device__ float result(float sum) {
        return 0.5f * sum;
    }

    template <class Dot>
    static __device__ void add(const Params &p, Total &total, int64_t i, int64_t r, int64_t g, Dot dot) {
        total.sum = fold(p, total.sum, dot(i), i, r, g);
    }
    static __device__ float fold(const Params &p, float total, float dot, int64_t, int64_t r, int64_t g) {
        return __fadd_rn(total, __fmul_rn(dot, p.scale[r * p.lds + g]));
    }
    static __device__ void finish(const Params &p, float total, int64_t i, int64_t r) {
        bt_finish(p.y, p.y_type, i * p.ldy + r, total, p.bias, p.bias_type, r);
    }
    static __device__ void store(const Params &p, const Total &total, int64_t i, int64_t r) {
        finish(p, total.sum, i, r);
    }
};

} // namespace

extern "C" bt_status bt_ternary_linear_packed_cuda_baseline(const bt_ternary_linear_packed *p, int64_t, int64_t) {
    if (p->m == 0 || p->n == 0)
        return BT_OK;
    const dim3 grid(bt_blocks(bt_div_up(p->n, THREADS)), bt_blocks(p->m));
    return BT_LAUNCH(baseline, grid, dim3(THREADS), p->stream, *p);
}

extern "C" bt_status bt_ternary_linear_packed_cuda_tiled(const bt_ternary_linear_packed *p, int64_t, int64_t) {
    if (p->m == 0 || p->n == 0)
        return BT_OK;
    const dim3 grid(bt_blocks(bt_div_up(p->n, TILE) * bt_div_up(p->m, TILE)));
    return BT_LAUNCH(tiled, grid, dim3(TILE, LANES), p->stream, *p);
}

/* A row of the table for who picks: csrc/dispatch decodes the rows and has torch multiply. */
extern "C" bt_status bt_ternary_linear_packed_cuda_unpack(const bt_ternary_linear_packed *p, int64_t, int64_t) {
    return p->m == 0 || p->n == 0 ? BT_OK : BT_ERR_PROBLEM;
}

extern "C" bt_status bt_ternary_linear_packed_cuda_skinny(const bt_ternary_linear_packed *p, int64_t, int64_t) {
    if (p->x_type == BT_F16)
        return bt_skinny_launch<Halves<BT_F16>>(*p);
    return p->x_type == BT_BF16 ? bt_skinny_launch<Halves<BT_BF16>>(*p) : (bt_status)BT_ERR_PROBLEM;
}

extern "C" bt_status bt_ternary_linear_packed_cuda_bulk(const bt_ternary_linear_packed *p, int64_t, int64_t) {
    if (p->x_type == BT_F16)
        return bt_bulk_launch<Halves<BT_F16>>(*p);
    return p->x_type == BT_BF16 ? bt_bulk_launch<Halves<BT_BF16>>(*p) : (bt_status)BT_ERR_PROBLEM;
}
