/* vpdpbusd for vectors of LANES lanes: acc + the four products u8 * s8 of each lane. As an instruction, because gcc 12
 * copies the accumulators around the intrinsic. */
#ifndef BT_CPU_X86_VNNI_H
#define BT_CPU_X86_VNNI_H

#include "x86.h"

#if LANES == 16 && defined(BT_SIMDE)
BT_ALWAYS_INLINE __m512i dot_u8_i8(__m512i acc, __m512i u, __m512i q) {
    return _mm512_add_epi32(acc, bt_join(bt_dot_u8_i8(bt_low(u), bt_low(q)), bt_dot_u8_i8(bt_high(u), bt_high(q))));
}
BT_ALWAYS_INLINE __m512i in_register(__m512i v) {
    return v;
}
#elif LANES == 16
BT_ALWAYS_INLINE __m512i dot_u8_i8(__m512i acc, __m512i u, __m512i q) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(u), "v"(q));
    return acc;
}
/* v, in one register at the end of a pass: gcc 12 copies some sums otherwise. */
BT_ALWAYS_INLINE __m512i in_register(__m512i v) {
    __asm__("" : "+v"(v));
    return v;
}
#elif defined(BT_SIMDE)
BT_ALWAYS_INLINE __m256i dot_u8_i8(__m256i acc, __m256i u, __m256i q) {
    return _mm256_add_epi32(acc, bt_dot_u8_i8(u, q));
}
BT_ALWAYS_INLINE __m256i dot_loaded(__m256i acc, __m256i u, const int8_t *q) {
    return dot_u8_i8(acc, u, _mm256_loadu_si256((const __m256i *)q));
}
#else
/* AVX-VNNI is the VEX encoding: without a prefix assemblers take the one of AVX-512. */
#if defined(BT_EVEX)
#define VPDPBUSD "vpdpbusd"
#else
#define VPDPBUSD "%{vex%} vpdpbusd"
#endif
BT_ALWAYS_INLINE __m256i dot_u8_i8(__m256i acc, __m256i u, __m256i q) {
    __asm__(VPDPBUSD " %2, %1, %0" : "+x"(acc) : "x"(u), "x"(q));
    return acc;
}
/* With the load of q, for which several tokens leave no register. */
BT_ALWAYS_INLINE __m256i dot_loaded(__m256i acc, __m256i u, const int8_t *q) {
    __asm__(VPDPBUSD " %2, %1, %0" : "+x"(acc) : "x"(u), "m"(*(const __m256i_u *)q));
    return acc;
}
#endif

#endif
