/* int8 activations in natural order times packed ternary weights; integers are exact, so order does not matter.
 *
 * baseline  a thread makes an output.
 * tiled     a block of 32 x 8 threads makes 32 rows of w by 32 tokens; it brings 64 columns at a time to shared memory
 *           as words of four int8, in rows of 17 words so that 32 rows lie in 32 banks. Thread (tx, ty) has row tx and
 *           tokens ty + 8 j.
 * skinny    at most 16 rows of q on tensor cores, see skinny.cuh; bulk.cuh has it for more. A weight is +-64, the code
 * in the upper two bits of a byte, so sums are 64 times as large: int32 holds them for 262143 columns.
 *
 * Steps of k start at a scale group, hence at a multiple of 4 and at a byte of w; words are padded with zeros. The
 * epilogue is the header's, groups in rising order and every operation rounded on its own: the bits of the scalar. */
#include "../act_quantize.h"
#include "../cpu/half.h"
#include "../cpu/trit.h"
#include "../ternary_linear_w2a8.h"
#include "bulk.cuh"

enum { THREADS = 128, TILE = 32, STEP = 64, WORDS = STEP / 4, LANES = 8, TOKENS = TILE / LANES };

static __device__ float add_group(float sum, int dot, float q_scale, float scale) {
    return __fadd_rn(sum, __fmul_rn((float)dot, __fmul_rn(q_scale, scale)));
}

/* The same with digits: acc is exact. */
static __device__ double add_group_of_digits(double sum, double acc, double q_step, float scale) {
    return __dadd_rn(sum, __dmul_rn(__dmul_rn(acc, q_step), (double)scale));
}

/* Columns [begin, end) of a token and a row of w. */
static __device__ int dot_of(const int8_t *q, const uint8_t *w, int64_t begin, int64_t end) {
    int dot = 0;
    for (int64_t k = begin; k < end; k++)
        dot += bt_trit_at(w, k) * q[k];
    return dot;
}

/* Token i by row r of w: the sum over groups. */
static __device__ float sum_groups(const bt_ternary_linear_w2a8 &p, int64_t i, int64_t r) {
    const uint8_t *w = p.w + r * p.ldw;
    const float *scale = p.scale + r * p.lds;
    float sum = 0.0f;
    double wide_sum = 0.0;
    for (int64_t begin = 0; begin < p.k; begin += p.group, scale++) {
        if (p.digits == 1) {
            sum = add_group(sum, dot_of(p.q + i * p.ldq, w, begin, begin + p.group), p.q_scale[i], *scale);
            continue;
        }
        double acc = 0.0;
        for (int d = p.digits - 1; d >= 0; d--)
            acc = 256.0 * acc + dot_of(p.q + (p.digits * i + d) * p.ldq, w, begin, begin + p.group);
        wide_sum = add_group_of_digits(wide_sum, acc, p.q_step[i], *scale);
    }
    return p.digits == 1 ? sum : (float)wide_sum;
}

static __global__ void baseline(bt_ternary_linear_w2a8 p) {
    const int64_t step = (int64_t)gridDim.x * THREADS;
    for (int64_t i = blockIdx.y; i < p.m; i += gridDim.y)
        for (int64_t r = (int64_t)blockIdx.x * THREADS + threadIdx.x; r < p.n; r += step) {
            bt_finish(p.y, p.y_type, i * p.ldy + r, sum_groups(p, i, r), p.bias, p.bias_type, r);
        }
}

/* Up to four codes of a token as one word; rows of q have any alignment. */
static __device__ int activation_word(const int8_t *q, int64_t count) {
    unsigned word = 0;
    for (int i = 0; i < 4 && i < count; i++)
        word |= (unsigned)(uint8_t)q[i] << (8 * i);
    return (int)word;
}

/* The four trits of a byte of w as one word, those past `count` as zeros. */
static __device__ int weight_word(unsigned byte, int64_t count) {
    unsigned word = 0;
    for (int i = 0; i < 4 && i < count; i++)
        word |= (unsigned)(uint8_t)bt_trit(byte >> (2 * i) & 3u) << (8 * i);
    return (int)word;
}

/* Columns [k0, end), at most 64, of digit `digit` of 32 tokens and of 32 rows; zeros where there is nothing. */
static __device__ void load_step(const bt_ternary_linear_w2a8 &p, int64_t i0, int digit, int64_t r0, int64_t k0,
                                 int64_t end, int (*qs)[WORDS + 1], int (*ws)[WORDS + 1]) {
    for (int at = (int)(threadIdx.y * TILE + threadIdx.x); at < TILE * WORDS; at += TILE * LANES) {
        const int line = at / WORDS, word = at % WORDS;
        const int64_t k = k0 + 4 * word, count = end - k, q_row = p.digits * (i0 + line) + digit;
        const bool token = count > 0 && i0 + line < p.m, row = count > 0 && r0 + line < p.n;
        qs[line][word] = token ? activation_word(p.q + q_row * p.ldq + k, count) : 0;
        ws[line][word] = row ? weight_word(p.w[(r0 + line) * p.ldw + k / 4], count) : 0;
    }
}

static __device__ void multiply_step(const int (*qs)[WORDS + 1], const int (*ws)[WORDS + 1], int *dot) {
    for (int word = 0; word < WORDS; word++) {
        const int w = ws[threadIdx.x][word];
        for (int j = 0; j < TOKENS; j++)
            dot[j] = __dp4a(w, qs[threadIdx.y + LANES * j][word], dot[j]);
    }
}

/* The products of a group with one digit of the tokens. */
static __device__ void multiply_group(const bt_ternary_linear_w2a8 &p, int64_t i0, int digit, int64_t r0, int64_t begin,
                                      int (*qs)[WORDS + 1], int (*ws)[WORDS + 1], int *dot) {
    for (int j = 0; j < TOKENS; j++)
        dot[j] = 0;
    for (int64_t k0 = begin; k0 < begin + p.group; k0 += STEP) {
        load_step(p, i0, digit, r0, k0, begin + p.group, qs, ws);
        __syncthreads();
        multiply_step(qs, ws, dot);
        __syncthreads();
    }
}

static __device__ void tile(const bt_ternary_linear_w2a8 &p, int64_t i0, int64_t r0, int (*qs)[WORDS + 1],
                            int (*ws)[WORDS + 1]) {
    const int64_t r = r0 + threadIdx.x, i = i0 + threadIdx.y;
    float sum[TOKENS] = {0};
    double wide_sum[TOKENS] = {0};
    for (int64_t begin = 0, g = 0; begin < p.k; begin += p.group, g++) {
        int dot[TOKENS];
        double acc[TOKENS] = {0};
        for (int digit = p.digits - 1; digit >= 0; digit--) {
            multiply_group(p, i0, digit, r0, begin, qs, ws, dot);
            for (int j = 0; j < TOKENS; j++)
                acc[j] = 256.0 * acc[j] + dot[j];
        }
        const float scale = r < p.n ? p.scale[r * p.lds + g] : 0.0f;
        for (int j = 0; j < TOKENS; j++) {
            const int64_t token = i + LANES * j < p.m ? i + LANES * j : 0;
            if (p.digits == 1)
                sum[j] = add_group(sum[j], dot[j], p.q_scale[token], scale);
            else
                wide_sum[j] = add_group_of_digits(wide_sum[j], acc[j], p.q_step[token], scale);
        }
    }
    for (int j = 0; j < TOKENS; j++)
        if (i + LANES * j < p.m && r < p.n)
            bt_finish(p.y, p.y_type, (i + LANES * j) * p.ldy + r, p.digits == 1 ? sum[j] : (float)wide_sum[j], p.bias,
                      p.bias_type, r);
}

static __global__ void tiled(bt_ternary_linear_w2a8 p) {
    __shared__ int qs[TILE][WORDS + 1], ws[TILE][WORDS + 1];
    const int64_t across = bt_div_up(p.n, TILE), tiles = across * bt_div_up(p.m, TILE);
    for (int64_t index = blockIdx.x; index < tiles; index += gridDim.x)
        tile(p, index / across * TILE, index % across * TILE, qs, ws);
}

namespace {

struct Codes {
    typedef bt_ternary_linear_w2a8 Params;
    typedef int Sum;
    enum { UNITS = 1 };
    struct Total {
        float narrow; /* of one digit */
        double wide;
    };

    static __host__ __device__ int digits(const Params &p) {
        return p.digits;
    }
    static __host__ __device__ const void *x(const Params &p, int64_t column) {
        return p.q + column * p.ldq;
    }

    static __host__ __device__ int64_t columns(const Params &p) {
        return bt_quantized_width(p.k, p.q_order);
    }
    static __device__ bool arranged(const Params &p) {
        return p.q_order == BT_ORDER_STRIDE4;
    }

    /* Byte j of a word of x lies beside weight 4 b + j of a word of w, and operand j takes it from every b: the four
     * words are a 4 x 4 matrix of bytes to be transposed. */
    static __device__ void arrange(const uint4 (&in)[1], uint4 (&out)[1]) {
        const uint32_t low01 = __byte_perm(in[0].x, in[0].y, 0x5140), low23 = __byte_perm(in[0].z, in[0].w, 0x5140);
        const uint32_t high01 = __byte_perm(in[0].x, in[0].y, 0x7362), high23 = __byte_perm(in[0].z, in[0].w, 0x7362);
        out[0] = {__byte_perm(low01, low23, 0x5410), __byte_perm(low01, low23, 0x7632),
                  __byte_perm(high01, high23, 0x5410), __byte_perm(high01, high23, 0x7632)};
    }

    /* 00, 01, 10 become 0, 1, -1 in two's complement, 00, 01, 11; shifted to the upper bits of their bytes they are
     * int8 0, 64, -64. Operand j has weights j, 4 + j, 8 + j and 12 + j. */
    static __device__ void multiply(int (&sum)[4], uint32_t low, uint32_t high, const uint4 (&x)[1]) {
        const uint32_t l = low | (low >> 1 & 0x55555555u), h = high | (high >> 1 & 0x55555555u), mask = 0xc0c0c0c0u;
        bt_mma_s8(sum, {l << 6 & mask, h << 6 & mask, l << 4 & mask, h << 4 & mask}, {x[0].x, x[0].y});
        bt_mma_s8(sum, {l << 2 & mask, h << 2 & mask, l & mask, h & mask}, {x[0].z, x[0].w});
    }
    static __device__ int result(int sum) {
        return sum >> 6;
    }

    template <class Dot>
    static __device__ void add(const Params &p, Total &total, int64_t i, int64_t r, int64_t g, Dot dot) {
        if (p.digits == 1) {
            total.narrow = fold(p, total.narrow, dot(i), i, r, g);
            return;
        }
        double acc = 0.0;
        for (int d = p.digits - 1; d >= 0; d--)
            acc = 256.0 * acc + dot(p.digits * i + d);
        total.wide = add_group_of_digits(total.wide, acc, p.q_step[i], p.scale[r * p.lds + g]);
    }
    static __device__ float fold(const Params &p, float total, int dot, int64_t i, int64_t r, int64_t g) {
        return add_group(total, dot, p.q_scale[i], p.scale[r * p.lds + g]);
    }
    static __device__ void finish(const Params &p, float total, int64_t i, int64_t r) {
        bt_finish(p.y, p.y_type, i * p.ldy + r, total, p.bias, p.bias_type, r);
    }
    static __device__ void store(const Params &p, const Total &total, int64_t i, int64_t r) {
        finish(p, p.digits == 1 ? total.narrow : (float)total.wide, i, r);
    }
};

} // namespace

extern "C" bt_status bt_ternary_linear_w2a8_cuda_baseline(const bt_ternary_linear_w2a8 *p, int64_t, int64_t) {
    if (p->m == 0 || p->n == 0)
        return BT_OK;
    if (p->q_order != BT_ORDER_NATURAL)
        return BT_ERR_PROBLEM;
    const dim3 grid(bt_blocks(bt_div_up(p->n, THREADS)), bt_blocks(p->m));
    return BT_LAUNCH(baseline, grid, dim3(THREADS), p->stream, *p);
}

extern "C" bt_status bt_ternary_linear_w2a8_cuda_tiled(const bt_ternary_linear_w2a8 *p, int64_t, int64_t) {
    if (p->m == 0 || p->n == 0)
        return BT_OK;
    if (p->q_order != BT_ORDER_NATURAL)
        return BT_ERR_PROBLEM;
    const dim3 grid(bt_blocks(bt_div_up(p->n, TILE) * bt_div_up(p->m, TILE)));
    return BT_LAUNCH(tiled, grid, dim3(TILE, LANES), p->stream, *p);
}

extern "C" bt_status bt_ternary_linear_w2a8_cuda_skinny(const bt_ternary_linear_w2a8 *p, int64_t, int64_t) {
    return bt_skinny_launch<Codes>(*p);
}

extern "C" bt_status bt_ternary_linear_w2a8_cuda_bulk(const bt_ternary_linear_w2a8 *p, int64_t, int64_t) {
    return bt_bulk_launch<Codes>(*p);
}
