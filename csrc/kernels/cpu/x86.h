/* The vocabulary of all AVX2 and AVX-512 files: unrolling, vectors as two halves, conversions and stores of values.
 * With BT_SIMDE the AVX-512 files are compiled for a CPU that only has AVX2. */
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
BT_ALWAYS_INLINE __m512i bt_int8_to_int32(__m128i v) {
    return bt_join(_mm256_cvtepi8_epi32(v), _mm256_cvtepi8_epi32(_mm_srli_si128(v, 8)));
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
BT_ALWAYS_INLINE __m512i bt_int8_to_int32(__m128i v) {
    return _mm512_cvtepi8_epi32(v);
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

/* clamp(rint(v * inverse), -most, most) in fp64, for eight floats; |v * inverse| is at most about `most`. */
BT_ALWAYS_INLINE __m256i bt_scaled_codes(__m256 v, __m256d inverse, __m256i most) {
    const __m256d low = _mm256_mul_pd(_mm256_cvtps_pd(_mm256_castps256_ps128(v)), inverse);
    const __m256d high = _mm256_mul_pd(_mm256_cvtps_pd(_mm256_extractf128_ps(v, 1)), inverse);
    const __m256i code =
        _mm256_inserti128_si256(_mm256_castsi128_si256(_mm256_cvtpd_epi32(low)), _mm256_cvtpd_epi32(high), 1);
    return _mm256_min_epi32(_mm256_max_epi32(code, _mm256_sub_epi32(_mm256_setzero_si256(), most)), most);
}

BT_ALWAYS_INLINE __m128 bt_load4(const void *base, int type, int64_t index) {
    if (type == BT_F32)
        return _mm_loadu_ps((const float *)base + index);
    const __m128i half = _mm_loadl_epi64((const __m128i *)((const uint16_t *)base + index));
    return type == BT_F16 ? _mm_cvtph_ps(half) : _mm_castsi128_ps(_mm_slli_epi32(_mm_cvtepu16_epi32(half), 16));
}

BT_ALWAYS_INLINE __m256 bt_load8(const void *base, int type, int64_t index) {
    if (type == BT_F32)
        return _mm256_loadu_ps((const float *)base + index);
    const __m128i half = _mm_loadu_si128((const __m128i *)((const uint16_t *)base + index));
    return type == BT_F16 ? _mm256_cvtph_ps(half)
                          : _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

#if defined(BT_SIMDE)
BT_ALWAYS_INLINE __m512 bt_load16(const void *base, int type, int64_t index) {
    const __m256 low = bt_load8(base, type, index), high = bt_load8(base, type, index + 8);
    return _mm512_castsi512_ps(bt_join(_mm256_castps_si256(low), _mm256_castps_si256(high)));
}
#elif defined(__AVX512F__)
BT_ALWAYS_INLINE __m512 bt_load16(const void *base, int type, int64_t index) {
    if (type == BT_F32)
        return _mm512_loadu_ps((const float *)base + index);
    const __m256i half = _mm256_loadu_si256((const __m256i *)((const uint16_t *)base + index));
    return type == BT_F16 ? _mm512_cvtph_ps(half)
                          : _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}
#endif

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

#endif
