/* Vectors of 16 lanes, by names that do not say so: one text of a product serves both widths. A lane is a word of 16
 * codes, or a float, of one row of w. MOST_TOKENS rows of activations fit the registers as sums of two vectors. Loads
 * and stores are aligned. */
#ifndef BT_CPU_X86_AVX512_H
#define BT_CPU_X86_AVX512_H

#include "x86.h"

#define LANES 16
#define BT_UNROLL_16 _Pragma("GCC unroll 16")
enum { MOST_TOKENS = 8 };
typedef __m512 floats;
typedef __m512i words;

BT_ALWAYS_INLINE words shift(words codes) {
    return _mm512_srli_epi32(codes, 2);
}
BT_ALWAYS_INLINE words load_words(const uint32_t *from) {
    return _mm512_load_si512(from);
}
/* The lowest code of each byte. */
BT_ALWAYS_INLINE words low_codes(words codes) {
    return _mm512_and_si512(codes, _mm512_set1_epi8(3));
}
BT_ALWAYS_INLINE void store_words(int32_t *to, words v) {
    _mm512_store_si512(to, v);
}
BT_ALWAYS_INLINE words splat_word(int32_t word) {
    return _mm512_set1_epi32(word);
}
BT_ALWAYS_INLINE words add_words(words a, words b) {
    return _mm512_add_epi32(a, b);
}
/* Four of the lanes. */
BT_ALWAYS_INLINE __m128i quarter(words v, const int part) {
    const __m256i half = part < 2 ? bt_low(v) : bt_high(v);
    return part % 2 ? _mm256_extracti128_si256(half, 1) : _mm256_castsi256_si128(half);
}
BT_ALWAYS_INLINE words splat_quad(const int8_t *from) {
    int32_t quad;
    memcpy(&quad, from, sizeof quad);
    return _mm512_set1_epi32(quad);
}

/* v[i], lane j <-> v[j], lane i. */
BT_ALWAYS_INLINE void transpose(words v[16]) {
    words t[16];
    BT_UNROLL_16
    for (int i = 0; i < 16; i += 2) { /* pairs of rows */
        t[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
    }
    BT_UNROLL
    for (int i = 0; i < 16; i += 4) { /* part p of v[i + j]: lane 4 p + j of four rows */
        v[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        v[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        v[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        v[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    BT_UNROLL
    for (int j = 0; j < 4; j++) {
        const words low = _mm512_shuffle_i32x4(v[j], v[4 + j], 0x88), high = _mm512_shuffle_i32x4(v[j], v[4 + j], 0xdd);
        const words low2 = _mm512_shuffle_i32x4(v[8 + j], v[12 + j], 0x88);
        const words high2 = _mm512_shuffle_i32x4(v[8 + j], v[12 + j], 0xdd);
        t[j] = _mm512_shuffle_i32x4(low, low2, 0x88);
        t[4 + j] = _mm512_shuffle_i32x4(high, high2, 0x88);
        t[8 + j] = _mm512_shuffle_i32x4(low, low2, 0xdd);
        t[12 + j] = _mm512_shuffle_i32x4(high, high2, 0xdd);
    }
    BT_UNROLL_16
    for (int i = 0; i < 16; i++)
        v[i] = t[i];
}

/* The weights of the lowest codes. */
#if defined(BT_SIMDE)
BT_ALWAYS_INLINE __m512 decode(__m512i codes) {
    const __m512 trits = _mm512_set_ps(0.0f, -1.0f, 1.0f, 0.0f, 0.0f, -1.0f, 1.0f, 0.0f, 0.0f, -1.0f, 1.0f, 0.0f, 0.0f,
                                       -1.0f, 1.0f, 0.0f);
    return _mm512_permutexvar_ps(_mm512_and_si512(codes, _mm512_set1_epi32(3)), trits);
}
#else
BT_ALWAYS_INLINE __m512 decode(__m512i codes) {
    const __m512 trits = _mm512_broadcast_f32x4(_mm_setr_ps(0.0f, 1.0f, -1.0f, 0.0f));
    return _mm512_permutevar_ps(trits, codes);
}
#endif
BT_ALWAYS_INLINE floats zeros(void) {
    return _mm512_setzero_ps();
}
#if defined(BT_SIMDE)
BT_ALWAYS_INLINE floats to_floats(words v) {
    const __m256 low = _mm256_cvtepi32_ps(bt_low(v)), high = _mm256_cvtepi32_ps(bt_high(v));
    return _mm512_castsi512_ps(bt_join(_mm256_castps_si256(low), _mm256_castps_si256(high)));
}
#else
BT_ALWAYS_INLINE floats to_floats(words v) {
    return _mm512_cvtepi32_ps(v);
}
#endif
BT_ALWAYS_INLINE floats splat(const float *from) {
    return _mm512_set1_ps(*from);
}
BT_ALWAYS_INLINE floats load(const float *from) {
    return _mm512_load_ps(from);
}
BT_ALWAYS_INLINE void store(float *to, floats v) {
    _mm512_store_ps(to, v);
}
BT_ALWAYS_INLINE floats add(floats a, floats b) {
    return _mm512_add_ps(a, b);
}
BT_ALWAYS_INLINE floats multiply(floats a, floats b) {
    return _mm512_mul_ps(a, b);
}
BT_ALWAYS_INLINE floats multiply_add(floats a, floats b, floats c) {
    return _mm512_fmadd_ps(a, b, c);
}

#endif
