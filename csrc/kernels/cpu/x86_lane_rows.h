/* Products with rows of w in the lanes of a vector, for short rows of w and several tokens.
 *
 * With columns in the lanes, as in x86_four_rows.h, a row of 128 columns is half a block, and its sum over the lanes
 * costs as much as its products. Here no lane is empty, and there is no sum over lanes.
 *
 *   words[ROWS i + row]    the codes of columns 16 i .. 16 i + 15
 *
 * The words of some rows are gathered once for all tokens of a tile. Before it stands x86_avx2.h or x86_avx512.h, which
 * says how many LANES there are. */
#ifndef BT_CPU_X86_LANE_ROWS_H
#define BT_CPU_X86_LANE_ROWS_H

#if !defined(LANES)
#error "include x86_avx2.h or x86_avx512.h first, the vectors that this is for"
#endif

#include "../lane_cost.h"
#include "../ternary_linear_packed.h"
#include "x86.h"

enum { VECTORS = 2, ROWS = VECTORS * LANES, STEPS = 16, SHORT_K = BT_NATURAL_K };

#define BT_UNROLL_8 _Pragma("GCC unroll 8")

/* Up to ROWS rows, as words, and with what their sums meet. */
typedef struct short_rows {
    _Alignas(64) uint32_t words[SHORT_K / STEPS * ROWS];
    _Alignas(64) float scale[ROWS], bias[ROWS];
    const uint8_t *w[ROWS]; /* past the last row it stands in; such lanes are not stored */
    int64_t first;
    int count, lanes;
} short_rows;

/* Rows [first, end), or as many as there is room for. */
#define BEGIN_ROWS(rows, p, first, end)                                                                                \
    begin_rows(rows, (p)->w, (p)->ldw, (p)->scale, (p)->lds, (p)->bias, (p)->bias_type, first, end)
static void begin_rows(short_rows *rows, const uint8_t *w, int64_t ldw, const float *scale, int64_t lds,
                       const void *bias, int bias_type, int64_t first, int64_t end) {
    rows->first = first;
    rows->count = end - first < ROWS ? (int)(end - first) : ROWS;
    rows->lanes = rows->count > LANES ? ROWS : LANES;
    for (int r = 0; r < rows->lanes; r++) {
        const int64_t row = first + (r < rows->count ? r : rows->count - 1);
        rows->w[r] = w + row * ldw;
        rows->scale[r] = scale[row * lds];
        rows->bias[r] = bias ? bt_load(bias, bias_type, row) : -0.0f;
    }
}

/* Bytes of each row that gather_words() need not look at: with vectors of 16 words it is whole vectors. */
BT_ALWAYS_INLINE int64_t gather_vectors(short_rows *rows, int64_t begin, int64_t bytes) {
#if LANES == 16
    for (int r = 0; r < rows->lanes; r += LANES)
        for (int64_t at = 0; at + 64 <= bytes; at += 64) {
            words word[LANES];
            BT_UNROLL_16
            for (int i = 0; i < LANES; i++)
                word[i] = _mm512_loadu_si512(rows->w[r + i] + begin / 4 + at);
            transpose(word);
            BT_UNROLL_16
            for (int i = 0; i < LANES; i++)
                _mm512_store_si512(rows->words + ROWS * (at / 4 + i) + r, word[i]);
        }
    return bytes & -64;
#else
    (void)rows, (void)begin, (void)bytes;
    return 0;
#endif
}

/* The words of columns [begin, end), at most SHORT_K of them from a multiple of 16 on: four rows by four words at a
 * time, then the rest, of which the last word may be less than four bytes. */
static void gather_words(short_rows *rows, int64_t begin, int64_t end) {
    const int64_t bytes = bt_div_up(end - begin, 4), done = gather_vectors(rows, begin, bytes);
    for (int r = 0; r < rows->lanes; r += 4) {
        uint32_t *to = rows->words + ROWS * (done / 4) + r;
        const uint8_t *w[4];
        for (int i = 0; i < 4; i++)
            w[i] = rows->w[r + i] + begin / 4;
        int64_t at = done;
        for (; at + 16 <= bytes; at += 16, to += 4 * ROWS) {
            __m128 row[4];
            for (int i = 0; i < 4; i++)
                row[i] = _mm_castsi128_ps(_mm_loadu_si128((const __m128i *)(w[i] + at)));
            _MM_TRANSPOSE4_PS(row[0], row[1], row[2], row[3]);
            for (int i = 0; i < 4; i++)
                _mm_store_si128((__m128i *)(to + ROWS * i), _mm_castps_si128(row[i]));
        }
        for (; at < bytes; at += 4, to += ROWS)
            for (int i = 0; i < 4; i++) {
                to[i] = 0;
                for (int64_t b = 0; b < 4 && at + b < bytes; b++)
                    to[i] |= (uint32_t)w[i][at + b] << 8 * b;
            }
    }
}

/* A token's outputs for the rows, with their bias, to y from element `at` on. */
static inline void store_rows(const short_rows *rows, void *y, int y_type, int64_t at, const float *value) {
    if (y_type == BT_F32) {
        memcpy((float *)y + at, value, (size_t)rows->count * sizeof(float));
        return;
    }
    int r = 0;
    for (; r + 4 <= rows->count; r += 4)
        bt_store4(y, y_type, at + r, _mm_load_ps(value + r));
    for (; r < rows->count; r++)
        bt_store(y, y_type, at + r, value[r]);
}

#endif
