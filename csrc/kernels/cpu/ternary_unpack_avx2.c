/* ternary_unpack, 32 output bytes at a time; unpack_rows.h for the places of their codes. */
#include "unpack_rows.h"
#include "x86.h"

enum { BYTES = 32 };

/* The codes of a vector: 8, 4 or 2 bytes, again and again. */
BT_ALWAYS_INLINE __m256i load_codes(const uint8_t *w, int size) {
    return size == 1   ? _mm256_set1_epi64x((int64_t)bt_unpack_load(w, 8))
           : size == 2 ? _mm256_set1_epi32((int32_t)bt_unpack_load(w, 4))
                       : _mm256_set1_epi16((int16_t)bt_unpack_load(w, 2));
}

BT_ALWAYS_INLINE void fill_vectors(const uint8_t *w, char *y, int64_t begin, int64_t end, const bt_unpack_values *v,
                                   const int size) {
    const __m256i from = _mm256_loadu_si256((const __m256i *)v->from);
    const __m256i bits = _mm256_loadu_si256((const __m256i *)v->bits);
    const __m256i low = _mm256_and_si256(bits, _mm256_set1_epi8(0x55)), high = _mm256_xor_si256(bits, low);
    const __m256i zero = _mm256_set1_epi32((int32_t)v->of[0]);
    const __m256i to_plus = _mm256_set1_epi32((int32_t)(v->of[0] ^ v->of[1]));
    const __m256i to_minus = _mm256_set1_epi32((int32_t)(v->of[0] ^ v->of[2]));
    int64_t c = begin;
    for (; c + BYTES / size <= end; c += BYTES / size) {
        const __m256i code = _mm256_and_si256(_mm256_shuffle_epi8(load_codes(w + c / 4, size), from), bits);
        const __m256i plus = _mm256_and_si256(_mm256_cmpeq_epi8(code, low), to_plus);
        const __m256i minus = _mm256_and_si256(_mm256_cmpeq_epi8(code, high), to_minus);
        _mm256_storeu_si256((__m256i *)(y + c * size), _mm256_xor_si256(zero, _mm256_or_si256(plus, minus)));
    }
    bt_unpack_columns(w, y, c, end, v, size);
}

void bt_unpack_fill_avx2(const uint8_t *w, char *y, int64_t begin, int64_t end, const bt_unpack_values *v) {
    BT_UNPACK_BY_SIZE(fill_vectors, w, y, begin, end, v);
}

bt_status bt_ternary_unpack_avx2(const bt_ternary_unpack *p, int64_t row_begin, int64_t row_end) {
    return bt_unpack_rows(p, row_begin, row_end, bt_unpack_fill_avx2);
}
