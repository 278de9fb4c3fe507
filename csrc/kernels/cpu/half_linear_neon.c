#include "neon.h"

typedef float32x4_t half_vector;
#define HALF_WIDTH 4
#define HALF_TOKENS 2
#include "half_rows.h"

HALF_INLINE half_vector half_zeros(void) {
    return vdupq_n_f32(0.0f);
}
HALF_INLINE half_vector half_widened(const uint16_t *from, int type) {
    return bt_neon_load4(from, type, 0);
}
HALF_INLINE half_vector half_floats(const float *from) {
    return vld1q_f32(from);
}
HALF_INLINE half_vector half_fused(half_vector a, half_vector b, half_vector c) {
    return vfmaq_f32(c, a, b);
}
HALF_INLINE void half_store(float *to, half_vector v) {
    vst1q_f32(to, v);
}

bt_status bt_half_linear_neon(const bt_half_linear *p, int64_t tile_begin, int64_t tile_end) {
    return half_linear(p, tile_begin, tile_end);
}
