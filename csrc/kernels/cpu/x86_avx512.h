/* Vectors of 16 lanes, by names that do not say so: one text of a product serves both widths. A lane is a word of 16
 * codes, or a float, of one row of w. MOST_TOKENS rows of activations fit the registers as sums of two vectors. Loads
 * and stores are aligned. */
#ifndef BT_CPU_X86_AVX512_H
#define BT_CPU_X86_AVX512_H

#include "x86.h"

#define LANES 16
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
BT_ALWAYS_INLINE words splat_quad(const int8_t *from) {
    int32_t quad;
    memcpy(&quad, from, sizeof quad);
    return _mm512_set1_epi32(quad);
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
