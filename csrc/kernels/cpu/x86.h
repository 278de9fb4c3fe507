/* What the AVX2 and AVX-512 files share: 128-bit helpers, four weight rows at a time, the reduction of lanes.
 *
 * A block of 256 columns is 64 packed bytes and 16 32-bit lanes; a quarter is four lanes, which are 64 columns both in
 * float order and in planes. With BT_SIMDE the AVX-512 files are compiled for a CPU that only has AVX2. */
#ifndef BT_CPU_X86_H
#define BT_CPU_X86_H

#if defined(BT_SIMDE)
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>
#else
#include <immintrin.h>
#endif

#include "half.h"

#include <string.h>

#define BT_ALWAYS_INLINE static inline __attribute__((always_inline))
#define BT_UNROLL _Pragma("GCC unroll 4")

enum { BT_ROWS = 4, BT_TOKENS = 4, BT_BLOCK = 256, BT_BLOCK_BYTES = 64, BT_PREFETCH = 4096 };

/* Four rows at once are more streams than the hardware follows, but together they are one: the rows lie one after the
 * other in memory, so the next lines are fetched in the order of addresses, `offset` counting from the first row. The
 * distance is from the last row, so that its lines are on their way however long the rows are. May point past the end
 * of w. */
BT_ALWAYS_INLINE void bt_prefetch(const uint8_t *const w[BT_ROWS], int64_t offset) {
    __builtin_prefetch((const void *)((uintptr_t)w[BT_ROWS - 1] + (uintptr_t)(offset + BT_PREFETCH)), 0, 3);
}

#if defined(BT_SIMDE) || defined(__AVX512F__)
BT_ALWAYS_INLINE __m256i bt_low(__m512i v) {
    return _mm512_castsi512_si256(v);
}
BT_ALWAYS_INLINE __m256i bt_high(__m512i v) {
    return _mm512_extracti64x4_epi64(v, 1);
}
BT_ALWAYS_INLINE __m512i bt_join(__m256i low, __m256i high) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}
/* The sums that vpdpbusd adds. */
BT_ALWAYS_INLINE __m256i bt_dot_u8_i8(__m256i u, __m256i q) {
    const __m256i even = _mm256_and_si256(u, _mm256_set1_epi16(255)), odd = _mm256_srli_epi16(u, 8);
    const __m256i even_q = _mm256_srai_epi16(_mm256_slli_epi16(q, 8), 8), odd_q = _mm256_srai_epi16(q, 8);
    return _mm256_add_epi32(_mm256_madd_epi16(even, even_q), _mm256_madd_epi16(odd, odd_q));
}
#endif

#if defined(BT_SIMDE)
BT_ALWAYS_INLINE __m512i bt_madd_words(__m512i a, __m512i b) {
    return bt_join(_mm256_madd_epi16(bt_low(a), bt_low(b)), _mm256_madd_epi16(bt_high(a), bt_high(b)));
}
BT_ALWAYS_INLINE __m128i bt_to_bytes(__m512i v) {
    const __m256i words = _mm256_packus_epi32(bt_low(v), bt_high(v));
    const __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    return _mm_shuffle_epi32(bytes, _MM_SHUFFLE(3, 1, 2, 0));
}
#elif defined(__AVX512BW__)
BT_ALWAYS_INLINE __m512i bt_madd_words(__m512i a, __m512i b) {
    return _mm512_madd_epi16(a, b);
}
BT_ALWAYS_INLINE __m128i bt_to_bytes(__m512i v) {
    return _mm512_cvtepi32_epi8(v);
}
#endif
#if defined(BT_SIMDE) || defined(__AVX512BW__)
/* 64 codes to 16 bytes: multiplications by 1, 4, 16 and 64 join the four of a 32-bit lane. */
BT_ALWAYS_INLINE __m128i bt_join4(__m512i codes) {
    const __m512i pairs = _mm512_maddubs_epi16(codes, _mm512_set1_epi16(0x0401));
    return bt_to_bytes(bt_madd_words(pairs, _mm512_set1_epi32(0x00100001)));
}
#endif

/* run(..., count) where count, 1 to 4, is a constant. */
#define BT_BY_COUNT(count, run, ...)                                                                                   \
    switch (count) {                                                                                                   \
    case 1:                                                                                                            \
        run(__VA_ARGS__, 1);                                                                                           \
        break;                                                                                                         \
    case 2:                                                                                                            \
        run(__VA_ARGS__, 2);                                                                                           \
        break;                                                                                                         \
    case 3:                                                                                                            \
        run(__VA_ARGS__, 3);                                                                                           \
        break;                                                                                                         \
    default:                                                                                                           \
        run(__VA_ARGS__, 4);                                                                                           \
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

/* clamp(rint(v * inverse), -most, most) in fp64, for eight floats; |v * inverse| is at most about `most`. */
BT_ALWAYS_INLINE __m256i bt_scaled_codes(__m256 v, __m256d inverse, __m256i most) {
    const __m256d low = _mm256_mul_pd(_mm256_cvtps_pd(_mm256_castps256_ps128(v)), inverse);
    const __m256d high = _mm256_mul_pd(_mm256_cvtps_pd(_mm256_extractf128_ps(v, 1)), inverse);
    const __m256i code =
        _mm256_inserti128_si256(_mm256_castsi128_si256(_mm256_cvtpd_epi32(low)), _mm256_cvtpd_epi32(high), 1);
    return _mm256_min_epi32(_mm256_max_epi32(code, _mm256_sub_epi32(_mm256_setzero_si256(), most)), most);
}

/* A 256-bit step of int8 products: 32 packed bytes are 128 columns and meet the four planes at the same half of their
 * block. */
enum { BT_STEP = 128, BT_STEP_BYTES = 32 };

/* Offset of a step in a row of q. */
BT_ALWAYS_INLINE int64_t bt_step_at(int64_t step) {
    return BT_BLOCK * (step >> 1) + BT_STEP_BYTES * (step & 1);
}

/* code + 1, in {0, 1, 2}, of plane `plane`; a table takes a nibble, for even planes its low code, for odd ones its high
 * code. */
BT_ALWAYS_INLINE __m256i bt_codes_plus_one(__m256i bytes, const int plane) {
    const __m256i even = _mm256_broadcastsi128_si256(_mm_setr_epi8(1, 2, 0, 0, 1, 2, 0, 0, 1, 2, 0, 0, 1, 2, 0, 0));
    const __m256i odd = _mm256_broadcastsi128_si256(_mm_setr_epi8(1, 1, 1, 1, 2, 2, 2, 2, 0, 0, 0, 0, 0, 0, 0, 0));
    const __m256i shifted = plane < 2 ? bytes : _mm256_srli_epi16(bytes, 4);
    return _mm256_shuffle_epi8(plane % 2 ? odd : even, _mm256_and_si256(shifted, _mm256_set1_epi8(15)));
}

/* The same pointer, of which the compiler knows nothing: it then addresses what lies there by the distance from it, and
 * loads it anew. */
BT_ALWAYS_INLINE const void *bt_opaque(const void *p) {
    __asm__ volatile("" : "+r"(p));
    return p;
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

BT_ALWAYS_INLINE __m128i bt_add_halves(__m256i v) {
    return _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
}

BT_ALWAYS_INLINE __m128 bt_load4(const void *base, int type, int64_t index) {
    if (type == BT_F32)
        return _mm_loadu_ps((const float *)base + index);
    const __m128i half = _mm_loadl_epi64((const __m128i *)((const uint16_t *)base + index));
    return type == BT_F16 ? _mm_cvtph_ps(half) : _mm_castsi128_ps(_mm_slli_epi32(_mm_cvtepu16_epi32(half), 16));
}

/* bt_to_bf16() of four values, in the low halves of the lanes. */
BT_ALWAYS_INLINE __m128i bt_to_bf16x4(__m128 value) {
    const __m128i bits = _mm_castps_si128(value), upper = _mm_srli_epi32(bits, 16);
    const __m128i even = _mm_add_epi32(_mm_set1_epi32(0x7fff), _mm_and_si128(upper, _mm_set1_epi32(1)));
    const __m128i rounded = _mm_srli_epi32(_mm_add_epi32(bits, even), 16);
    const __m128i quiet = _mm_or_si128(upper, _mm_set1_epi32(0x40));
    return _mm_blendv_epi8(rounded, quiet, _mm_castps_si128(_mm_cmpunord_ps(value, value)));
}

BT_ALWAYS_INLINE void bt_store4(void *base, int type, int64_t index, __m128 value) {
    if (type == BT_F32) {
        _mm_storeu_ps((float *)base + index, value);
        return;
    }
    const __m128i wide = bt_to_bf16x4(value);
    const __m128i half = type == BT_F16 ? _mm_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT) : _mm_packus_epi32(wide, wide);
    _mm_storel_epi64((__m128i *)((uint16_t *)base + index), half);
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

#endif
