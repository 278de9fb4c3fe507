/* What the vocabularies of x86_i8_columns.h for 256-bit vectors share. */
#ifndef BT_CPU_X86_I8_256_H
#define BT_CPU_X86_I8_256_H

#define LANES 8
#include "x86_four_rows.h"

enum { VECTOR = 32 };
typedef __m256i bytes;

BT_ALWAYS_INLINE bytes zero(void) {
    return _mm256_setzero_si256();
}
BT_ALWAYS_INLINE bytes minus(bytes a, bytes b) {
    return _mm256_sub_epi32(a, b);
}
BT_ALWAYS_INLINE bytes pick_bytes(__m128i table, bytes index) {
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), index);
}
BT_ALWAYS_INLINE bytes settled(bytes v) {
    return v;
}
BT_ALWAYS_INLINE void sum_parts(__m128i *part, bytes a, bytes b, bytes c, bytes d) {
    _mm256_storeu_si256((__m256i *)part, bt_sum_parts(a, b, c, d));
}
/* Among other loops gcc 12 has too few registers. */
#define ADD_ROWS static __attribute__((noinline)) void

#endif
