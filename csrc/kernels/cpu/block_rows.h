/* The frames of block_unpack and block_linear on a CPU. The file that includes this says how many floats a vector has,
 * BT_BLOCK_WIDTH; vectors are the compiler's, which every instruction set can have.
 *
 * One token takes weights as they are decoded; several find them in a buffer, a step of 256 at a time. */
#ifndef BT_CPU_BLOCK_ROWS_H
#define BT_CPU_BLOCK_ROWS_H

#include "../block_linear.h"
#include "block_codes.h"
#if BT_BLOCK_WIDTH > 4
#include "x86.h"
#endif

enum { BT_BLOCK_LANES = 32, BT_BLOCK_VECTORS = BT_BLOCK_LANES / BT_BLOCK_WIDTH };

typedef int32_t bt_block_ints __attribute__((vector_size(4 * BT_BLOCK_WIDTH)));
typedef float bt_block_vector __attribute__((vector_size(4 * BT_BLOCK_WIDTH)));
typedef float bt_block_memory __attribute__((vector_size(4 * BT_BLOCK_WIDTH), aligned(4), may_alias));

/* The weights from column c of a step on. Compilers widen bytes one by one, so x86 is told how. */
static inline __attribute__((always_inline)) bt_block_vector bt_block_weights_at(const bt_block_codes *codes, int c) {
    const int8_t *const at = codes->q + c;
    const int g = c / BT_BLOCK_GROUP;
#if BT_BLOCK_WIDTH == 16
    const bt_block_ints q = (bt_block_ints)bt_int8_to_int32(_mm_loadu_si128((const __m128i *)at));
#elif BT_BLOCK_WIDTH == 8
    const bt_block_ints q = (bt_block_ints)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)at));
#else
    const bt_block_ints q = {at[0], at[1], at[2], at[3]};
#endif
    return __builtin_convertvector(q, bt_block_vector) * codes->scale[g] - codes->least[g];
}

static inline __attribute__((always_inline)) void bt_block_floats(const bt_block_codes *codes, int count, float *w) {
    for (int c = 0; c < count; c += BT_BLOCK_WIDTH)
        *(bt_block_memory *)(w + c) = bt_block_weights_at(codes, c);
}

static inline __attribute__((always_inline)) bt_status bt_block_unpack_rows(const bt_block_unpack *p, int64_t row_begin,
                                                                            int64_t row_end) {
    float w[BT_BLOCK_STEP] __attribute__((aligned(64)));
    bt_block_codes codes;
    for (int64_t row = row_begin; row < row_end; row++)
        for (int64_t c = 0; c < p->k; c += BT_BLOCK_STEP) {
            const int count = bt_block_step(p->k - c);
            bt_block_read(p->block, p->w + row * p->ldw + bt_block_row_bytes(p->block, c), count, &codes);
            bt_block_floats(&codes, count, w);
            bt_store_many(p->y, p->y_type, row * p->ldy + c, count, w);
        }
    return BT_OK;
}

/* Adds the products of a step to the lanes of one token; weights from the buffer, or where it is NULL from codes. */
static inline __attribute__((always_inline)) void bt_block_add(const bt_block_codes *codes, const float *w,
                                                               const float *x, int count, bt_block_vector *lanes) {
    bt_block_vector sum[BT_BLOCK_VECTORS];
    memcpy(sum, lanes, sizeof sum);
    for (int begin = 0; begin < count; begin += BT_BLOCK_LANES)
#pragma GCC unroll 8
        for (int v = 0; v < BT_BLOCK_VECTORS; v++) {
            const int c = begin + v * BT_BLOCK_WIDTH;
            const bt_block_vector in = *(const bt_block_memory *)(x + c);
            if (w)
                sum[v] += in * *(const bt_block_memory *)(w + c);
            else
                sum[v] += in * bt_block_weights_at(codes, c);
        }
    memcpy(lanes, sum, sizeof sum);
}

static inline float bt_block_sum(const bt_block_vector *vectors) {
    float lanes[BT_BLOCK_LANES];
    memcpy(lanes, vectors, sizeof lanes);
    for (int width = BT_BLOCK_LANES / 2; width > 0; width /= 2)
        for (int j = 0; j < width; j++)
            lanes[j] += lanes[j + width];
    return lanes[0];
}

static inline __attribute__((always_inline)) bt_status bt_block_linear_tiles(const bt_block_linear *p,
                                                                             int64_t tile_begin, int64_t tile_end) {
    float w[BT_BLOCK_STEP] __attribute__((aligned(64)));
    bt_block_vector lanes[BT_TILE_M][BT_BLOCK_VECTORS];
    bt_block_codes codes;
    for (int64_t tile = tile_begin; tile < tile_end; tile++) {
        const bt_tile t = bt_tile_at(p->m, p->n, tile);
        const int64_t tokens = t.m1 - t.m0;
        const float *const x = p->x + t.m0 * p->ldx;
        for (int64_t row = t.n0; row < t.n1; row++) {
            memset(lanes, 0, sizeof *lanes * (size_t)tokens);
            for (int64_t c = 0; c < p->k; c += BT_BLOCK_STEP) {
                const int count = bt_block_step(p->k - c);
                bt_block_read(p->block, p->w + row * p->ldw + bt_block_row_bytes(p->block, c), count, &codes);
                if (tokens == 1) {
                    bt_block_add(&codes, NULL, x + c, count, lanes[0]);
                    continue;
                }
                bt_block_floats(&codes, count, w);
                for (int64_t i = 0; i < tokens; i++)
                    bt_block_add(&codes, w, x + i * p->ldx + c, count, lanes[i]);
            }
            for (int64_t i = 0; i < tokens; i++)
                p->y[(t.m0 + i) * p->ldy + row] = bt_block_sum(lanes[i]);
        }
    }
    return BT_OK;
}

#endif
