/* ternary_unpack, 64 output bytes at a time; unpack_rows.h for the places of their codes. */
#include "unpack_rows.h"
#include "x86.h"

enum { BYTES = 64 };

/* The codes of a vector: 16, 8 or 4 bytes, again and again. */
BT_ALWAYS_INLINE __m512i load_codes(const uint8_t *w, int size) {
    return size == 1   ? _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)w))
           : size == 2 ? _mm512_set1_epi64((int64_t)bt_unpack_load(w, 8))
                       : _mm512_set1_epi32((int32_t)bt_unpack_load(w, 4));
}

BT_ALWAYS_INLINE void fill_vectors(const uint8_t *w, char *y, int64_t begin, int64_t end, const bt_unpack_values *v,
                                   const int size) {
    const __m512i from = _mm512_loadu_si512(v->from), bits = _mm512_loadu_si512(v->bits);
    const __m512i low = _mm512_and_si512(bits, _mm512_set1_epi8(0x55)), high = _mm512_xor_si512(bits, low);
    const __m512i zero = _mm512_set1_epi32((int32_t)v->of[0]);
    const __m512i plus = _mm512_set1_epi32((int32_t)v->of[1]), minus = _mm512_set1_epi32((int32_t)v->of[2]);
    int64_t c = begin;
    for (; c + BYTES / size <= end; c += BYTES / size) {
        const __m512i code = _mm512_and_si512(_mm512_shuffle_epi8(load_codes(w + c / 4, size), from), bits);
        const __m512i no_minus = _mm512_mask_mov_epi8(zero, _mm512_cmpeq_epi8_mask(code, low), plus);
        _mm512_storeu_si512(y + c * size, _mm512_mask_mov_epi8(no_minus, _mm512_cmpeq_epi8_mask(code, high), minus));
    }
    bt_unpack_columns(w, y, c, end, v, size);
}

void bt_unpack_fill_avx512(const uint8_t *w, char *y, int64_t begin, int64_t end, const bt_unpack_values *v) {
    BT_UNPACK_BY_SIZE(fill_vectors, w, y, begin, end, v);
}

bt_status bt_ternary_unpack_avx512(const bt_ternary_unpack *p, int64_t row_begin, int64_t row_end) {
    return bt_unpack_rows(p, row_begin, row_end, bt_unpack_fill_avx512);
}
