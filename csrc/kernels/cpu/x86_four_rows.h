/* Products with columns of w in the lanes of a vector, four rows of w by one to four rows of activations at a time: the
 * rows, what is left of them at the end, the sums over lanes, and where the results go.
 *
 * A block of 256 columns is 64 packed bytes and 16 32-bit lanes; a quarter is four lanes, which are 64 columns both in
 * float order and in planes. A step of 256-bit int8 products is half a block: 32 packed bytes meet the four planes at
 * the same half of theirs. */
#ifndef BT_CPU_X86_FOUR_ROWS_H
#define BT_CPU_X86_FOUR_ROWS_H

#include "../bt_common.h"
#include "x86.h"

enum { BT_ROWS = 4, BT_TOKENS = 4, BT_BLOCK = 256, BT_BLOCK_BYTES = 64, BT_PREFETCH = 4096 };
enum { BT_STEP = 128, BT_STEP_BYTES = 32 };

/* Four rows at once are more streams than the hardware follows, but together they are one: the rows lie one after the
 * other in memory, so the next lines are fetched in the order of addresses, `offset` counting from the first row. The
 * distance is from the last row, so that its lines are on their way however long the rows are. May point past the end
 * of w. */
BT_ALWAYS_INLINE void bt_prefetch(const uint8_t *const w[BT_ROWS], int64_t offset) {
    __builtin_prefetch((const void *)((uintptr_t)w[BT_ROWS - 1] + (uintptr_t)(offset + BT_PREFETCH)), 0, 3);
}

/* Four rows of w. Past the end of a tile the last row stands in, and `count` says how many are stored. */
typedef struct bt_rows {
    const uint8_t *w[BT_ROWS];
    const float *scale[BT_ROWS];
    int64_t first;
    int count;
} bt_rows;

BT_ALWAYS_INLINE bt_rows bt_rows_at(const uint8_t *w, int64_t ldw, const float *scale, int64_t lds, int64_t first,
                                    int64_t end) {
    bt_rows rows = {.first = first, .count = end - first < BT_ROWS ? (int)(end - first) : BT_ROWS};
    rows.w[0] = w + first * ldw;
    rows.scale[0] = scale + first * lds;
    for (int r = 1; r < BT_ROWS; r++) { /* by additions: gcc multiplies in vectors, which takes longer than a block */
        rows.w[r] = rows.w[r - 1] + (r < rows.count ? ldw : 0);
        rows.scale[r] = rows.scale[r - 1] + (r < rows.count ? lds : 0);
    }
    return rows;
}

BT_ALWAYS_INLINE __m128 bt_scales(const bt_rows *rows, int64_t g) {
    return _mm_setr_ps(rows->scale[0][g], rows->scale[1][g], rows->scale[2][g], rows->scale[3][g]);
}

/* Whether a group is whole blocks, or one or two quarters of a block, or all columns; other sizes are left to the
 * scalar kernel. */
BT_ALWAYS_INLINE int bt_group_fits(int64_t k, int64_t group) {
    return group == k || group % BT_BLOCK == 0 || group == 128 || group == 64;
}

/* Columns to accumulate before a reduction: a group, or several small ones of one unit. */
BT_ALWAYS_INLINE int64_t bt_span(int64_t k, int64_t group, int64_t unit) {
    return group == k || group > unit ? group : unit;
}

/* The first `bytes` of 32, zeros for the others, of which none is read. As masked loads, because memset and memcpy of
 * an unknown size are calls, which for the four rows of a tile cost as much as several blocks of columns. */
BT_ALWAYS_INLINE __m256i bt_load_first(const uint8_t *w, int64_t bytes) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const int words = (int)(bytes < 32 ? bytes / 4 : 8);
    const __m256i last = _mm256_set1_epi32(words);
    uint32_t rest = 0;
    for (int64_t i = 4 * words; i < bytes && i < 4 * words + 3; i++)
        rest |= (uint32_t)w[i] << (8 * (i % 4));
    const __m256i whole = _mm256_maskload_epi32((const int *)w, _mm256_cmpgt_epi32(last, lane));
    return _mm256_or_si256(whole, _mm256_and_si256(_mm256_cmpeq_epi32(last, lane), _mm256_set1_epi32((int)rest)));
}

/* The last `bytes` of four rows, followed by zero codes up to `stride` bytes, 32 or 64: nothing is read past the end of
 * a row. */
BT_ALWAYS_INLINE void bt_copy_tail(uint8_t *tail, const int stride, const uint8_t *const w[BT_ROWS], int64_t at,
                                   int64_t bytes) {
    BT_UNROLL
    for (int r = 0; r < BT_ROWS; r++) {
        BT_UNROLL
        for (int i = 0; i < stride; i += 32) {
            const __m256i part = bytes > i ? bt_load_first(w[r] + at + i, bytes - i) : _mm256_setzero_si256();
            _mm256_storeu_si256((__m256i *)(tail + r * stride + i), part);
        }
    }
}

/* Lanes l + (l + 8), then l + (l + 4), as far as the quarters go. */
BT_ALWAYS_INLINE __m128 bt_quarters_f32(const float *lanes, int quarters) {
    const __m128 first = _mm_loadu_ps(lanes);
    if (quarters == 1)
        return first;
    if (quarters == 2)
        return _mm_add_ps(first, _mm_loadu_ps(lanes + 4));
    return _mm_add_ps(_mm_add_ps(first, _mm_loadu_ps(lanes + 8)),
                      _mm_add_ps(_mm_loadu_ps(lanes + 4), _mm_loadu_ps(lanes + 12)));
}

/* The tree of ternary_linear_packed.h over the lanes of four rows; its last two steps are l + (l + 2), l + (l + 1). */
BT_ALWAYS_INLINE __m128 bt_tree(const float *lanes, int64_t stride, int quarters) {
    __m128 a = bt_quarters_f32(lanes, quarters), b = bt_quarters_f32(lanes + stride, quarters);
    __m128 c = bt_quarters_f32(lanes + 2 * stride, quarters), d = bt_quarters_f32(lanes + 3 * stride, quarters);
    _MM_TRANSPOSE4_PS(a, b, c, d);
    return _mm_add_ps(_mm_add_ps(a, c), _mm_add_ps(b, d));
}

/* For each 128-bit part of four vectors, the sums over its lanes. */
BT_ALWAYS_INLINE __m256i bt_sum_parts(__m256i a, __m256i b, __m256i c, __m256i d) {
    return _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
}

#if defined(BT_SIMDE) || defined(__AVX512F__)
/* The same of 512 bits. Interleaving two vectors and adding the halves sums
 * both at once. */
BT_ALWAYS_INLINE __m512i bt_sum_wide_parts(__m512i a, __m512i b, __m512i c, __m512i d) {
    const __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    const __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
    return _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
}
#endif

BT_ALWAYS_INLINE __m128i bt_add_halves(__m256i v) {
    return _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
}

/* The digits above one of four sums, which is exact. */
BT_ALWAYS_INLINE __m256d bt_join_digit(__m256d above, __m128i digit) {
    return _mm256_add_pd(_mm256_mul_pd(above, _mm256_set1_pd(256.0)), _mm256_cvtepi32_pd(digit));
}

/* Where sums go: y[token][row], with the bias of the row. */
typedef struct bt_output {
    void *y;
    const void *bias;
    int64_t ldy;
    int y_type, bias_type;
} bt_output;

/* bt_finish() for fewer than four rows; not inlined, because it is rare and long. */
static __attribute__((noinline, unused)) void bt_finish_few(const bt_output *out, int64_t token, __m128 value,
                                                            const bt_rows *rows) {
    float single[BT_ROWS];
    _mm_storeu_ps(single, value);
    for (int r = 0; r < rows->count; r++)
        bt_finish(out->y, out->y_type, token * out->ldy + rows->first + r, single[r], out->bias, out->bias_type,
                  rows->first + r);
}

/* bt_finish() for the sums of four rows and some tokens, the first of which is number `token`. */
BT_ALWAYS_INLINE void bt_finish_block(const bt_output *out, int64_t token, const __m128 *value, const bt_rows *rows,
                                      const int tokens) {
    if (rows->count < BT_ROWS) {
        for (int c = 0; c < tokens; c++)
            bt_finish_few(out, token + c, value[c], rows);
        return;
    }
    const __m128 bias = out->bias ? bt_load4(out->bias, out->bias_type, rows->first) : _mm_set1_ps(-0.0f);
    for (int c = 0; c < tokens; c++)
        bt_store4(out->y, out->y_type, (token + c) * out->ldy + rows->first, _mm_add_ps(value[c], bias));
}

/* `statement` for each block of 4 rows and at most `width` tokens of the tiles [begin, end): it sees the `rows`, the
 * first `token` and the `count` of tokens. Blocks are as even as can be, 5 tokens 3 and 2: a single token costs as much
 * decoding as several. */
#define BT_EACH_BLOCK(p, begin, end, width, statement)                                                                 \
    for (int64_t index = (begin), count; index < (end); index++) {                                                     \
        const bt_tile t = bt_tile_at((p)->m, (p)->n, index);                                                           \
        for (int64_t token = t.m0; token < t.m1; token += count) {                                                     \
            count = bt_div_up(t.m1 - token, bt_div_up(t.m1 - token, (width)));                                         \
            for (int64_t row = t.n0; row < t.n1; row += BT_ROWS) {                                                     \
                const bt_rows rows = bt_rows_at((p)->w, (p)->ldw, (p)->scale, (p)->lds, row, t.n1);                    \
                statement                                                                                              \
            }                                                                                                          \
        }                                                                                                              \
    }

#endif
