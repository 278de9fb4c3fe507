/* The vocabulary of x86_i8_columns.h for AVX-VNNI: weights become unsigned by an offset of 128. */
#ifndef BT_CPU_X86_I8_AVXVNNI_H
#define BT_CPU_X86_I8_AVXVNNI_H

#include "x86_i8_256.h"
#include "x86_vnni.h"

enum { OFFSET = 128 };
typedef __m256i weights;
typedef const int8_t *digits;

BT_ALWAYS_INLINE weights weights_at(const uint8_t *w) {
    const __m256i v = _mm256_loadu_si256((const __m256i *)w);
#if defined(ROWS_HAVE_OFFSET)
    return v;
#else
    return _mm256_xor_si256(v, _mm256_set1_epi8((char)OFFSET));
#endif
}
BT_ALWAYS_INLINE digits digits_at(const int8_t *q) {
    return q;
}
BT_ALWAYS_INLINE bytes dot(bytes acc, weights w, digits q) {
    return dot_loaded(acc, w, q);
}
/* Eight sums at a time, or six, beside weights in 16 registers. */
BT_ALWAYS_INLINE int rows_at_once(const int q_rows) {
    return q_rows <= 2 ? 4 : 2;
}

#include "x86_i8_columns.h"
#endif
