/* Rows go over gridDim.y, columns over gridDim.x. A thread writes 16 bytes of y at a time where rows of y allow it and
 * so many columns are left, else values one by one. Of four columns, a byte of w, the scale is one, and what its three
 * codes stand for is rounded once. */
#include "../cpu/half.h"
#include "../cpu/trit.h"
#include "../ternary_unpack.h"
#include "launch.cuh"

enum { THREADS = 256 };

/* The bits of code * scale in y's type, for the codes 0, 1 and -1. */
struct values_t {
    uint32_t of_code[3];
};

static __device__ uint32_t bits_of(int type, float value) {
    if (type == BT_F32)
        return bt_float_bits(value);
    return type == BT_F16 ? bt_to_f16(value) : bt_to_bf16(value);
}

/* int8 has no scale, so that one byte a value leaves most of this out. */
template <int BYTES> static __device__ values_t values_at(const bt_ternary_unpack &p, int64_t row, int64_t column) {
    if (BYTES == 1)
        return {{0, 1, 0xff}};
    const int64_t group = p.lds > 1 ? column / p.group : 0;
    const float scale = p.scale ? p.scale[row * p.lds + group] : 1.0f;
    return {{bits_of(p.y_type, __fmul_rn(0.0f, scale)), bits_of(p.y_type, __fmul_rn(1.0f, scale)),
             bits_of(p.y_type, __fmul_rn(-1.0f, scale))}};
}

static __device__ uint32_t value_of(const values_t &values, unsigned code) {
    return code == 0 ? values.of_code[0] : code == 1 ? values.of_code[1] : values.of_code[2];
}

/* 16 bytes of y: elements of BYTES each, from the codes at `from` on. */
template <int BYTES>
static __device__ uint4 sixteen(const bt_ternary_unpack &p, const uint8_t *from, int64_t row, int64_t column,
                                values_t values) {
    uint32_t word[4] = {0};
    BT_UNROLL
    for (int i = 0; i < 16 / BYTES; i++) {
        if (BYTES > 1 && i % 4 == 0 && p.lds > 1)
            values = values_at<BYTES>(p, row, column + i);
        const uint32_t value = value_of(values, from[i / 4] >> (2 * (i % 4)) & 3u);
        word[i * BYTES / 4] |= value << (i * BYTES % 4 * 8);
    }
    return {word[0], word[1], word[2], word[3]};
}

template <int BYTES> static __global__ void unpack(bt_ternary_unpack p, bool aligned) {
    enum { AT_ONCE = 16 / BYTES };
    const int64_t step = (int64_t)gridDim.x * THREADS * AT_ONCE;
    for (int64_t row = blockIdx.y; row < p.n; row += gridDim.y) {
        const uint8_t *const w = p.w + row * p.ldw;
        uint8_t *const y = (uint8_t *)p.y + row * p.ldy * BYTES;
        const values_t values = values_at<BYTES>(p, row, 0);
        for (int64_t c = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * AT_ONCE; c < p.k; c += step) {
            if (aligned && c + AT_ONCE <= p.k) {
                *(uint4 *)(y + c * BYTES) = sixteen<BYTES>(p, w + c / 4, row, c, values);
                continue;
            }
            for (int64_t i = c; i < p.k && i < c + AT_ONCE; i++) {
                const uint32_t value = value_of(BYTES > 1 && p.lds > 1 ? values_at<BYTES>(p, row, i) : values,
                                                w[i / 4] >> (2 * (i % 4)) & 3u);
                memcpy(y + i * BYTES, &value, BYTES);
            }
        }
    }
}

template <int BYTES> static bt_status launch(const bt_ternary_unpack &p) {
    const bool aligned = (uintptr_t)p.y % 16 == 0 && p.ldy * BYTES % 16 == 0;
    const dim3 grid(bt_blocks(bt_div_up(p.k, THREADS * 16 / BYTES)), bt_blocks(p.n));
    return BT_LAUNCH(unpack<BYTES>, grid, dim3(THREADS), p.stream, p, aligned);
}

extern "C" bt_status bt_ternary_unpack_cuda_baseline(const bt_ternary_unpack *p, int64_t, int64_t) {
    if (p->n == 0 || p->k == 0)
        return BT_OK;
    return p->y_type == BT_I8 ? launch<1>(*p) : p->y_type == BT_F32 ? launch<4>(*p) : launch<2>(*p);
}
