/* Vectors of 8 lanes, by names that do not say so: one text of a product serves both widths. A lane is a word of 16
 * codes, or a float, of one row of w. MOST_TOKENS rows of activations fit the registers as sums of two vectors. Loads
 * and stores are aligned. */
#ifndef BT_CPU_X86_AVX2_H
#define BT_CPU_X86_AVX2_H

#include "x86.h"

#define LANES 8
enum { MOST_TOKENS = 4 };
typedef __m256 floats;
typedef __m256i words;

BT_ALWAYS_INLINE words shift(words codes) {
    return _mm256_srli_epi32(codes, 2);
}
BT_ALWAYS_INLINE words load_words(const uint32_t *from) {
    return _mm256_load_si256((const __m256i *)from);
}
/* With the mask in memory: sums, codes and weights leave no register for it. */
BT_ALWAYS_INLINE words low_codes(words codes) {
    static const _Alignas(32) uint32_t mask[8] = {0x03030303, 0x03030303, 0x03030303, 0x03030303,
                                                  0x03030303, 0x03030303, 0x03030303, 0x03030303};
    words low;
    __asm__("vpand %2, %1, %0" : "=x"(low) : "x"(codes), "m"(*(const __m256i *)mask));
    return low;
}
BT_ALWAYS_INLINE void store_words(int32_t *to, words v) {
    _mm256_store_si256((__m256i *)to, v);
}
BT_ALWAYS_INLINE words splat_word(int32_t word) {
    return _mm256_set1_epi32(word);
}
BT_ALWAYS_INLINE words add_words(words a, words b) {
    return _mm256_add_epi32(a, b);
}
/* Four of the lanes. */
BT_ALWAYS_INLINE __m128i quarter(words v, const int part) {
    return part ? _mm256_extracti128_si256(v, 1) : _mm256_castsi256_si128(v);
}
BT_ALWAYS_INLINE words splat_quad(const int8_t *from) {
    int32_t quad;
    memcpy(&quad, from, sizeof quad);
    return _mm256_set1_epi32(quad);
}

/* The weights of the lowest codes. */
BT_ALWAYS_INLINE floats decode(words codes) {
    const __m256 trits = _mm256_setr_ps(0.0f, 1.0f, -1.0f, 0.0f, 0.0f, 1.0f, -1.0f, 0.0f);
    return _mm256_permutevar_ps(trits, codes);
}
BT_ALWAYS_INLINE floats zeros(void) {
    return _mm256_setzero_ps();
}
BT_ALWAYS_INLINE floats to_floats(words v) {
    return _mm256_cvtepi32_ps(v);
}
BT_ALWAYS_INLINE floats splat(const float *from) {
    return _mm256_broadcast_ss(from);
}
BT_ALWAYS_INLINE floats load(const float *from) {
    return _mm256_load_ps(from);
}
BT_ALWAYS_INLINE void store(float *to, floats v) {
    _mm256_store_ps(to, v);
}
BT_ALWAYS_INLINE floats add(floats a, floats b) {
    return _mm256_add_ps(a, b);
}
BT_ALWAYS_INLINE floats multiply(floats a, floats b) {
    return _mm256_mul_ps(a, b);
}
BT_ALWAYS_INLINE floats multiply_add(floats a, floats b, floats c) {
    return _mm256_fmadd_ps(a, b, c);
}

#endif
