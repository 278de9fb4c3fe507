/* A block takes a row: the absmax through the order of the bits, then the codes, with the formula and the orders of the
 * header. Every operation is rounded on its own, so the codes and the scale have the bits of the scalar kernel. */
#include "../act_quantize.h"
#include "../cpu/half.h"
#include "reduce.cuh"

#include <math.h>

static __device__ int64_t position(const bt_act_quantize &p, int64_t k) {
    return p.order == BT_ORDER_PLANES ? bt_plane_index(k) : p.order == BT_ORDER_STRIDE4 ? bt_stride4_index(k) : k;
}

static __device__ uint32_t absmax_bits(const bt_act_quantize &p, int64_t row) {
    uint32_t most = 0;
    for (int64_t k = threadIdx.x; k < p.k; k += blockDim.x) {
        const uint32_t bits = bt_float_bits(bt_load(p.x, p.x_type, row * p.ldx + k)) & 0x7fffffffu;
        most = bits > most ? bits : most;
    }
    return most;
}

static __device__ int code_of(float x, float inverse) {
    return (int)fminf(fmaxf(rintf(__fmul_rn(x, inverse)), -127.0f), 127.0f);
}

static __global__ void quantize(bt_act_quantize p) {
    __shared__ uint32_t scratch[BT_MAX_THREADS];
    const int64_t end = bt_quantized_width(p.k, p.order);
    for (int64_t row = blockIdx.x; row < p.m; row += gridDim.x) {
        const uint32_t bits =
            bt_block_reduce(absmax_bits(p, row), scratch, [](uint32_t a, uint32_t b) { return a > b ? a : b; });
        const bool finite = bits < 0x7f800000u;
        const float absmax = fmaxf(bt_bits_float(finite ? bits : 0u), 1e-5f), inverse = __fdiv_rn(127.0f, absmax);
        int sum = 0;
        for (int64_t k = threadIdx.x; k < end; k += blockDim.x) {
            const int code = finite && k < p.k ? code_of(bt_load(p.x, p.x_type, row * p.ldx + k), inverse) : 0;
            p.q[row * p.ldq + position(p, k)] = (int8_t)code;
            sum += code;
        }
        /* Sums of codes are exact modulo 2^32, in any order. */
        const uint32_t total = bt_block_reduce((uint32_t)sum, scratch, [](uint32_t a, uint32_t b) { return a + b; });
        if (threadIdx.x == 0) {
            p.scale[row] = finite ? __fdiv_rn(absmax, 127.0f) : bt_bits_float(0x7fc00000u);
            if (p.sum)
                p.sum[row] = (int32_t)total;
        }
    }
}

/* 16 activations from column k on, zeros past the last: one to four loads where rows are aligned. */
static __device__ void load_sixteen(const bt_act_quantize &p, int64_t row, int64_t k, bool aligned, float (&x)[16]) {
    const int64_t first = row * p.ldx + k;
    if (!aligned || k + 16 > p.k) {
        BT_UNROLL
        for (int i = 0; i < 16; i++)
            x[i] = k + i < p.k ? bt_load(p.x, p.x_type, first + i) : 0.0f;
        return;
    }
    const int per = p.x_type == BT_F32 ? 4 : 8;
    const uint4 *const from = (const uint4 *)((const uint8_t *)p.x + first * (16 / per));
    BT_UNROLL
    for (int i = 0; i < 16; i++) {
        const uint4 v = from[i / per];
        const uint32_t words[4] = {v.x, v.y, v.z, v.w};
        if (p.x_type == BT_F32)
            x[i] = bt_bits_float(words[i % 4]);
        else {
            const uint16_t half = (uint16_t)(words[i % 8 / 2] >> (16 * (i % 2)));
            x[i] = p.x_type == BT_F16 ? bt_from_f16(half) : bt_from_bf16(half);
        }
    }
}

/* The same as quantize() in natural order or with stride 4, for rows of q at multiples of 16 bytes: 16 columns a
 * thread, so that a row of 4096 is one turn of a block. */
static __global__ void quantize_sixteens(bt_act_quantize p, bool aligned) {
    __shared__ uint32_t scratch[BT_MAX_THREADS];
    for (int64_t row = blockIdx.x; row < p.m; row += gridDim.x) {
        uint32_t most = 0;
        float x[16];
        for (int64_t k = 16 * (int64_t)threadIdx.x; k < p.k; k += 16 * blockDim.x) {
            load_sixteen(p, row, k, aligned, x);
            BT_UNROLL
            for (int i = 0; i < 16; i++) {
                const uint32_t bits = bt_float_bits(x[i]) & 0x7fffffffu;
                most = bits > most ? bits : most;
            }
        }
        const uint32_t bits = bt_block_reduce(most, scratch, [](uint32_t a, uint32_t b) { return a > b ? a : b; });
        const bool finite = bits < 0x7f800000u;
        const float absmax = fmaxf(bt_bits_float(finite ? bits : 0u), 1e-5f), inverse = __fdiv_rn(127.0f, absmax);
        int sum = 0;
        for (int64_t k = 16 * (int64_t)threadIdx.x; k < p.k; k += 16 * blockDim.x) {
            uint32_t words[4] = {0};
            load_sixteen(p, row, k, aligned, x);
            BT_UNROLL
            for (int i = 0; i < 16; i++) {
                const int code = finite ? code_of(x[i], inverse) : 0;
                const uint32_t byte = (uint8_t)code;
                if (p.order == BT_ORDER_STRIDE4)
                    words[i % 4] |= byte << (8 * (i / 4));
                else
                    words[i / 4] |= byte << (8 * (i % 4));
                sum += code;
            }
            int8_t *const to = p.q + row * p.ldq + k;
            if (p.order == BT_ORDER_STRIDE4 || k + 16 <= p.k)
                *(uint4 *)to = {words[0], words[1], words[2], words[3]};
            else
                for (int i = 0; k + i < p.k; i++)
                    to[i] = (int8_t)(uint8_t)(words[i / 4] >> (8 * (i % 4)));
        }
        const uint32_t total = bt_block_reduce((uint32_t)sum, scratch, [](uint32_t a, uint32_t b) { return a + b; });
        if (threadIdx.x == 0) {
            p.scale[row] = finite ? __fdiv_rn(absmax, 127.0f) : bt_bits_float(0x7fc00000u);
            if (p.sum)
                p.sum[row] = (int32_t)total;
        }
    }
}

/* The digits of a row; a thread keeps the sums of its own codes. */
static __device__ void write_digits(const bt_act_quantize &p, int64_t row, int64_t end, double inverse, int *sum) {
    const double most = (double)bt_digits_max(p.digits);
    for (int64_t k = threadIdx.x; k < end; k += blockDim.x) {
        const double x = k < p.k ? (double)bt_load(p.x, p.x_type, row * p.ldx + k) : 0.0;
        int code = (int)fmin(fmax(rint(__dmul_rn(x, inverse)), -most), most);
        for (int d = 0; d < p.digits; d++, code = bt_next_digit(code)) {
            p.q[(p.digits * row + d) * p.ldq + position(p, k)] = (int8_t)code;
            sum[d] += (int8_t)code;
        }
    }
}

static __global__ void quantize_digits(bt_act_quantize p) {
    __shared__ uint32_t scratch[BT_MAX_THREADS];
    const double most = (double)bt_digits_max(p.digits);
    const int64_t end = bt_quantized_width(p.k, p.order);
    for (int64_t row = blockIdx.x; row < p.m; row += gridDim.x) {
        const uint32_t bits =
            bt_block_reduce(absmax_bits(p, row), scratch, [](uint32_t a, uint32_t b) { return a > b ? a : b; });
        const bool finite = bits < 0x7f800000u;
        const double absmax = finite ? (double)bt_bits_float(bits) : 0.0;
        int sum[BT_MAX_DIGITS] = {0};
        /* A factor of 0 makes the zeros of a row that is zero; one with a NaN or an Inf needs them too. */
        for (int64_t k = threadIdx.x; !finite && k < end; k += blockDim.x)
            for (int d = 0; d < p.digits; d++)
                p.q[(p.digits * row + d) * p.ldq + position(p, k)] = 0;
        if (finite)
            write_digits(p, row, end, absmax > 0.0 ? __ddiv_rn(most, absmax) : 0.0, sum);
        for (int d = 0; d < p.digits; d++) {
            const uint32_t total =
                bt_block_reduce((uint32_t)sum[d], scratch, [](uint32_t a, uint32_t b) { return a + b; });
            if (threadIdx.x == 0 && p.sum)
                p.sum[p.digits * row + d] = (int32_t)total;
        }
        if (threadIdx.x == 0)
            p.step[row] = finite ? __ddiv_rn(absmax, most) : (double)bt_bits_float(0x7fc00000u);
    }
}

static __global__ void order_codes(bt_act_quantize p) {
    __shared__ uint32_t scratch[BT_MAX_THREADS];
    const int64_t end = bt_quantized_width(p.k, p.order);
    for (int64_t row = blockIdx.x; row < p.m; row += gridDim.x) {
        int sum = 0;
        for (int64_t k = threadIdx.x; k < end; k += blockDim.x) {
            const int8_t code = k < p.k ? ((const int8_t *)p.x)[row * p.ldx + k] : (int8_t)0;
            p.q[row * p.ldq + position(p, k)] = code;
            sum += code;
        }
        const uint32_t total = bt_block_reduce((uint32_t)sum, scratch, [](uint32_t a, uint32_t b) { return a + b; });
        if (p.sum && threadIdx.x == 0)
            p.sum[row] = (int32_t)total;
    }
}

extern "C" bt_status bt_act_quantize_cuda_baseline(const bt_act_quantize *p, int64_t, int64_t) {
    if (p->m == 0)
        return BT_OK;
    const dim3 grid(bt_blocks(p->m)), block(bt_block_threads(p->k));
    if (p->x_type == BT_I8)
        return BT_LAUNCH(order_codes, grid, block, p->stream, *p);
    if (p->digits > 1)
        return BT_LAUNCH(quantize_digits, grid, block, p->stream, *p);
    if (p->order == BT_ORDER_PLANES || (uintptr_t)p->q % 16 != 0 || p->ldq % 16 != 0)
        return BT_LAUNCH(quantize, grid, block, p->stream, *p);
    const int64_t bytes = p->x_type == BT_F32 ? 4 : 2;
    const bool aligned = (uintptr_t)p->x % 16 == 0 && p->ldx * bytes % 16 == 0;
    const dim3 of_sixteens(bt_block_threads(bt_div_up(p->k, 16)));
    return BT_LAUNCH(quantize_sixteens, grid, of_sixteens, p->stream, *p, aligned);
}
