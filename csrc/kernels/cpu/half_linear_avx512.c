#include "x86.h"

typedef __m512 half_vector;
#define HALF_WIDTH 16
#define HALF_TOKENS 8
#include "half_rows.h"

HALF_INLINE half_vector half_zeros(void) {
    return _mm512_setzero_ps();
}
#if defined(BT_SIMDE)
HALF_INLINE __m256 eight_widened(__m128i halves, int type) {
    if (type == BT_BF16)
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
    return _mm256_cvtph_ps(halves);
}
HALF_INLINE half_vector half_widened(const uint16_t *from, int type) {
    const __m256 low = eight_widened(_mm_loadu_si128((const __m128i *)from), type);
    const __m256 high = eight_widened(_mm_loadu_si128((const __m128i *)(from + 8)), type);
    return _mm512_castsi512_ps(bt_join(_mm256_castps_si256(low), _mm256_castps_si256(high)));
}
#else
HALF_INLINE half_vector half_widened(const uint16_t *from, int type) {
    const __m256i halves = _mm256_loadu_si256((const __m256i *)from);
    if (type == BT_BF16)
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
    return _mm512_cvtph_ps(halves);
}
#endif
HALF_INLINE half_vector half_floats(const float *from) {
    return _mm512_loadu_ps(from);
}
HALF_INLINE half_vector half_fused(half_vector a, half_vector b, half_vector c) {
    return _mm512_fmadd_ps(a, b, c);
}
HALF_INLINE void half_store(float *to, half_vector v) {
    _mm512_storeu_ps(to, v);
}

bt_status bt_half_linear_avx512(const bt_half_linear *p, int64_t tile_begin, int64_t tile_end) {
    return half_linear(p, tile_begin, tile_end);
}
