#include "x86.h"

typedef __m256 half_vector;
#define HALF_WIDTH 8
#define HALF_TOKENS 3
#include "half_rows.h"

HALF_INLINE half_vector half_zeros(void) {
    return _mm256_setzero_ps();
}
HALF_INLINE half_vector half_widened(const uint16_t *from, int type) {
    return bt_load8(from, type, 0);
}
HALF_INLINE half_vector half_floats(const float *from) {
    return _mm256_loadu_ps(from);
}
HALF_INLINE half_vector half_fused(half_vector a, half_vector b, half_vector c) {
    return _mm256_fmadd_ps(a, b, c);
}
HALF_INLINE void half_store(float *to, half_vector v) {
    _mm256_storeu_ps(to, v);
}

bt_status bt_half_linear_avx2(const bt_half_linear *p, int64_t tile_begin, int64_t tile_end) {
    return half_linear(p, tile_begin, tile_end);
}
