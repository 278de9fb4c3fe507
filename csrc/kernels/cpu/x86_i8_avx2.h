/* The vocabulary of x86_i8_columns.h for AVX2: even and odd bytes as words, whose products two and two are exact. */
#ifndef BT_CPU_X86_I8_AVX2_H
#define BT_CPU_X86_I8_AVX2_H

#include "x86_i8_256.h"

enum { OFFSET = 0 };
typedef struct bt_words {
    __m256i even, odd;
} weights, digits;

BT_ALWAYS_INLINE weights widened(const void *from) {
    const __m256i v = _mm256_loadu_si256((const __m256i *)from);
    const weights wide = {_mm256_srai_epi16(_mm256_slli_epi16(v, 8), 8), _mm256_srai_epi16(v, 8)};
    return wide;
}
BT_ALWAYS_INLINE weights weights_at(const uint8_t *w) {
    return widened(w);
}
BT_ALWAYS_INLINE digits digits_at(const int8_t *q) {
    return widened(q);
}
BT_ALWAYS_INLINE bytes dot(bytes acc, weights w, digits q) {
    const __m256i even = _mm256_madd_epi16(w.even, q.even), odd = _mm256_madd_epi16(w.odd, q.odd);
    return _mm256_add_epi32(acc, _mm256_add_epi32(even, odd));
}
/* A weight takes two of 16 registers, as digits do. */
BT_ALWAYS_INLINE int rows_at_once(const int q_rows) {
    return q_rows == 1 ? 4 : 2;
}

#include "x86_i8_columns.h"
#endif
