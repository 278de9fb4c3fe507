/* The vocabulary of x86_i8_columns.h for AVX-512 VNNI: weights become unsigned by an offset of 128. */
#ifndef BT_CPU_X86_I8_AVX512VNNI_H
#define BT_CPU_X86_I8_AVX512VNNI_H

#define LANES 16
#include "x86_four_rows.h"
#include "x86_vnni.h"

enum { VECTOR = 64, OFFSET = 128 };
typedef __m512i bytes, weights, digits;

BT_ALWAYS_INLINE weights weights_at(const uint8_t *w) {
#if defined(ROWS_HAVE_OFFSET)
    return _mm512_loadu_si512(w);
#else
    return _mm512_xor_si512(_mm512_loadu_si512(w), _mm512_set1_epi8((char)OFFSET));
#endif
}
BT_ALWAYS_INLINE digits digits_at(const int8_t *q) {
    return _mm512_loadu_si512(q);
}
BT_ALWAYS_INLINE bytes dot(bytes acc, weights w, digits q) {
    return dot_u8_i8(acc, w, q);
}
BT_ALWAYS_INLINE bytes zero(void) {
    return _mm512_setzero_si512();
}
BT_ALWAYS_INLINE bytes minus(bytes a, bytes b) {
    return _mm512_sub_epi32(a, b);
}
BT_ALWAYS_INLINE bytes pick_bytes(__m128i table, bytes index) {
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(table), index);
}
BT_ALWAYS_INLINE bytes settled(bytes v) {
    return in_register(v);
}
BT_ALWAYS_INLINE void sum_parts(__m128i *part, bytes a, bytes b, bytes c, bytes d) {
    _mm512_storeu_si512(part, bt_sum_wide_parts(a, b, c, d));
}
#define ADD_ROWS BT_ALWAYS_INLINE void
BT_ALWAYS_INLINE int rows_at_once(const int q_rows) {
    (void)q_rows;
    return 4;
}

#include "x86_i8_columns.h"
#endif
