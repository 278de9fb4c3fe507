/* A block takes a row: the factor of its norm where there is one, the absmax through the order of the bits, then the
 * codes, with the formula and the orders of the header. Every operation is rounded on its own, so the codes and the
 * scale have the bits of the scalar kernel. */
#include "../act_quantize.h"
#include "../cpu/half.h"
#include "reduce.cuh"

#include <math.h>

static __device__ int64_t position(const bt_act_quantize &p, int64_t k) {
    return p.order == BT_ORDER_PLANES ? bt_plane_index(k) : p.order == BT_ORDER_STRIDE4 ? bt_stride4_index(k) : k;
}

/* What a row is multiplied by before the weight of its norm. A thread is a lane of the sum of squares, and the tree of
 * bt_block_reduce is the header's. */
static __device__ float norm_factor(const bt_act_quantize &p, int64_t row) {
    __shared__ double scratch[BT_NORM_LANES];
    static_assert((int)BT_NORM_LANES == (int)BT_MAX_THREADS, "a lane is a thread of a whole block");
    if (!p.norm_weight)
        return 1.0f;
    double sum = 0.0;
    for (int64_t k = threadIdx.x; k < p.k; k += BT_NORM_LANES) {
        const double x = (double)bt_load(p.x, p.x_type, row * p.ldx + k);
        sum = __dadd_rn(sum, __dmul_rn(x, x));
    }
    sum = bt_block_reduce(sum, scratch, [](double a, double b) { return __dadd_rn(a, b); });
    return (float)__ddiv_rn(1.0, __dsqrt_rn(__dadd_rn(__ddiv_rn(sum, (double)p.k), p.norm_eps)));
}

static __device__ float normed(float x, float factor, float weight) {
    return __fmul_rn(__fmul_rn(x, factor), weight);
}

/* Column k of a row, as it is to be quantised. */
static __device__ float activation(const bt_act_quantize &p, int64_t row, int64_t k, float factor) {
    const float x = bt_load(p.x, p.x_type, row * p.ldx + k);
    return p.norm_weight ? normed(x, factor, bt_load(p.norm_weight, p.norm_type, k)) : x;
}

static __device__ uint32_t absmax_bits(const bt_act_quantize &p, int64_t row, float factor) {
    uint32_t most = 0;
    for (int64_t k = threadIdx.x; k < p.k; k += blockDim.x) {
        const uint32_t bits = bt_float_bits(activation(p, row, k, factor)) & 0x7fffffffu;
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
        const float factor = norm_factor(p, row);
        const uint32_t bits =
            bt_block_reduce(absmax_bits(p, row, factor), scratch, [](uint32_t a, uint32_t b) { return a > b ? a : b; });
        const bool finite = bits < 0x7f800000u;
        const float absmax = fmaxf(bt_bits_float(finite ? bits : 0u), 1e-5f), inverse = __fdiv_rn(127.0f, absmax);
        int sum = 0;
        for (int64_t k = threadIdx.x; k < end; k += blockDim.x) {
            const int code = finite && k < p.k ? code_of(activation(p, row, k, factor), inverse) : 0;
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

/* COUNT words from the `first`th 16 bytes on, four of them a load: a loop that takes one word of each load is compiled
 * to loads of a word. */
template <int COUNT> static __device__ void load_words(const void *x, int64_t first, uint32_t (&words)[COUNT]) {
    const uint4 *const from = (const uint4 *)x + first;
    BT_UNROLL
    for (int i = 0; i < COUNT / 4; i++) {
        const uint4 v = from[i];
        words[4 * i] = v.x, words[4 * i + 1] = v.y, words[4 * i + 2] = v.z, words[4 * i + 3] = v.w;
    }
}

/* 16 values from x[first] on, zeros from the `left`th on: two or four loads where they begin at a multiple of 16 bytes.
 */
static __device__ void load_sixteen(const void *x, int type, int64_t first, int64_t left, bool aligned,
                                    float (&value)[16]) {
    if (!aligned || left < 16) {
        BT_UNROLL
        for (int i = 0; i < 16; i++)
            value[i] = i < left ? bt_load(x, type, first + i) : 0.0f;
        return;
    }
    if (type == BT_F32) {
        uint32_t words[16];
        load_words(x, first / 4, words);
        BT_UNROLL
        for (int i = 0; i < 16; i++)
            value[i] = bt_bits_float(words[i]);
        return;
    }
    uint32_t words[8];
    load_words(x, first / 8, words);
    BT_UNROLL
    for (int i = 0; i < 16; i++) {
        const uint16_t half = (uint16_t)(words[i / 2] >> (16 * (i % 2)));
        value[i] = type == BT_F16 ? bt_from_f16(half) : bt_from_bf16(half);
    }
}

/* Which of the two have rows at multiples of 16 bytes. */
struct Alignment {
    bool x, norm;
};

/* The columns from k on of a row, as they are to be quantised. */
static __device__ void activations(const bt_act_quantize &p, int64_t row, int64_t k, Alignment aligned, float factor,
                                   float (&x)[16]) {
    load_sixteen(p.x, p.x_type, row * p.ldx + k, p.k - k, aligned.x, x);
    if (!p.norm_weight)
        return;
    float weight[16];
    load_sixteen(p.norm_weight, p.norm_type, k, p.k - k, aligned.norm, weight);
    BT_UNROLL
    for (int i = 0; i < 16; i++)
        x[i] = normed(x[i], factor, weight[i]);
}

/* The same as quantize() in natural order or with stride 4, for rows of q at multiples of 16 bytes: 16 columns a
 * thread, so that a row of 4096 is one turn of a block. */
static __global__ void quantize_sixteens(bt_act_quantize p, Alignment aligned) {
    __shared__ uint32_t scratch[BT_MAX_THREADS];
    for (int64_t row = blockIdx.x; row < p.m; row += gridDim.x) {
        const float factor = norm_factor(p, row);
        uint32_t most = 0;
        float x[16];
        for (int64_t k = 16 * (int64_t)threadIdx.x; k < p.k; k += 16 * blockDim.x) {
            activations(p, row, k, aligned, factor, x);
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
            activations(p, row, k, aligned, factor, x);
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
static __device__ void write_digits(const bt_act_quantize &p, int64_t row, int64_t end, float factor, double inverse,
                                    int *sum) {
    const double most = (double)bt_digits_max(p.digits);
    for (int64_t k = threadIdx.x; k < end; k += blockDim.x) {
        const double x = k < p.k ? (double)activation(p, row, k, factor) : 0.0;
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
        const float factor = norm_factor(p, row);
        const uint32_t bits =
            bt_block_reduce(absmax_bits(p, row, factor), scratch, [](uint32_t a, uint32_t b) { return a > b ? a : b; });
        const bool finite = bits < 0x7f800000u;
        const double absmax = finite ? (double)bt_bits_float(bits) : 0.0;
        int sum[BT_MAX_DIGITS] = {0};
        /* A factor of 0 makes the zeros of a row that is zero; one with a NaN or an Inf needs them too. */
        for (int64_t k = threadIdx.x; !finite && k < end; k += blockDim.x)
            for (int d = 0; d < p.digits; d++)
                p.q[(p.digits * row + d) * p.ldq + position(p, k)] = 0;
        if (finite)
            write_digits(p, row, end, factor, absmax > 0.0 ? __ddiv_rn(most, absmax) : 0.0, sum);
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
    const dim3 grid(bt_blocks(p->m));
    if (p->x_type == BT_I8)
        return BT_LAUNCH(order_codes, grid, dim3(bt_block_threads(p->k)), p->stream, *p);
    /* The lanes of a sum of squares are threads: a whole block then, however short the row. */
    const auto block = [p](int64_t pieces) {
        return dim3(p->norm_weight ? (unsigned)BT_NORM_LANES : bt_block_threads(pieces));
    };
    if (p->digits > 1)
        return BT_LAUNCH(quantize_digits, grid, block(p->k), p->stream, *p);
    if (p->order == BT_ORDER_PLANES || (uintptr_t)p->q % 16 != 0 || p->ldq % 16 != 0)
        return BT_LAUNCH(quantize, grid, block(p->k), p->stream, *p);
    const int64_t bytes = p->x_type == BT_F32 ? 4 : 2;
    const Alignment aligned = {(uintptr_t)p->x % 16 == 0 && p->ldx * bytes % 16 == 0,
                               (uintptr_t)p->norm_weight % 16 == 0};
    return BT_LAUNCH(quantize_sixteens, grid, block(bt_div_up(p->k, 16)), p->stream, *p, aligned);
}
