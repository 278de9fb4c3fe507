/* A block of threads transforms BT_HADAMARD_PART columns in shared memory: some Hadamard blocks, or a part of one. A
 * part needs no other part: the widths above it are summed while x is read, 2, 4 or 8 values for one, in the order of
 * the header. */
#include "../cpu/half.h"
#include "../hadamard.h"
#include "launch.cuh"

enum { THREADS = 256, BT_HADAMARD_PART = 4096, BT_HADAMARD_PARTS = BT_HADAMARD_MAX / BT_HADAMARD_PART };

static __device__ float signed_by(const int8_t *sign, int64_t column, float value) {
    if (!sign)
        return value;
    const int s = sign[column];
    return s == 1 ? value : s == -1 ? -value : bt_bits_float(0x7fc00000u);
}

static __device__ float input_at(const bt_hadamard &p, int64_t row, int64_t column) {
    return signed_by(p.before, column, bt_load(p.x, p.type, row * p.ldx + column));
}

/* Column `column` after the widths from n / 2 down to `part`, the columns of a part. */
static __device__ float after_wide_steps(const bt_hadamard &p, int64_t row, int64_t column, int64_t part) {
    const int64_t block = column & -p.n, inside = column & (part - 1);
    const int parts = (int)(p.n / part), own = (int)((column - block) / part);
    float value[BT_HADAMARD_PARTS];
    BT_UNROLL
    for (int i = 0; i < BT_HADAMARD_PARTS; i++)
        value[i] = i < parts ? input_at(p, row, block + i * part + inside) : 0.0f;
    BT_UNROLL
    for (int width = BT_HADAMARD_PARTS / 2; width > 0; width /= 2) {
        BT_UNROLL
        for (int i = 0; i < width; i++)
            if (width < parts)
                value[i] = __fadd_rn(value[i], own & width ? -value[i + width] : value[i + width]);
    }
    return value[0];
}

static __global__ void transform(bt_hadamard p, int64_t part, float factor) {
    __shared__ float v[BT_HADAMARD_PART];
    const int64_t all = p.m * p.k, step = (int64_t)gridDim.x * BT_HADAMARD_PART;
    for (int64_t first = (int64_t)blockIdx.x * BT_HADAMARD_PART; first < all; first += step) {
        const int64_t left = all - first, here = left < BT_HADAMARD_PART ? left : (int64_t)BT_HADAMARD_PART;
        for (int64_t i = threadIdx.x; i < here; i += THREADS)
            v[i] = after_wide_steps(p, (first + i) / p.k, (first + i) % p.k, part);
        __syncthreads();
        for (int64_t width = part / 2; width > 0; width /= 2) {
            for (int64_t i = threadIdx.x; i < here / 2; i += THREADS) {
                const int64_t j = (i & -width) * 2 + (i & (width - 1));
                const float a = v[j], b = v[j + width];
                v[j] = __fadd_rn(a, b);
                v[j + width] = __fadd_rn(a, -b);
            }
            __syncthreads();
        }
        /* A thread loads next what it stores here: no barrier. */
        for (int64_t i = threadIdx.x; i < here; i += THREADS) {
            const int64_t row = (first + i) / p.k, column = (first + i) % p.k;
            const float value = signed_by(p.after, column, __fmul_rn(v[i], factor));
            bt_store(p.y, p.type, row * p.ldy + column, value);
        }
    }
}

extern "C" bt_status bt_hadamard_cuda_baseline(const bt_hadamard *p, int64_t, int64_t) {
    if (p->m == 0 || p->k == 0)
        return BT_OK;
    const int64_t part = p->n < BT_HADAMARD_PART ? p->n : (int64_t)BT_HADAMARD_PART;
    const dim3 grid(bt_blocks(bt_div_up(p->m * p->k, BT_HADAMARD_PART)));
    return BT_LAUNCH(transform, grid, dim3(THREADS), p->stream, *p, part, bt_hadamard_factor(p->n));
}
