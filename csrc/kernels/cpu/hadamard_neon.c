/* hadamard: 16 values are four vectors. A step inside a vector adds the vector with its halves exchanged to itself with
 * the signs of the second half turned: b + a and a + (-b), which are a + b and a - b. */
#include "hadamard_block.h"

#include <arm_neon.h>

static inline float32x4_t turned(float32x4_t v, const uint32_t *signs) {
    return vreinterpretq_f32_u32(veorq_u32(vreinterpretq_u32_f32(v), vld1q_u32(signs)));
}

static inline float32x4_t steps_inside(float32x4_t v) {
    static const uint32_t upper[4] = {0, 0, 0x80000000u, 0x80000000u}, odd[4] = {0, 0x80000000u, 0, 0x80000000u};
    v = vaddq_f32(vextq_f32(v, v, 2), turned(v, upper));
    return vaddq_f32(vrev64q_f32(v), turned(v, odd));
}

static void narrow(float *v, int64_t n) {
    for (int64_t c = 0; c < n; c += 16) {
        const float32x4_t a = vld1q_f32(v + c), b = vld1q_f32(v + c + 4), d = vld1q_f32(v + c + 8),
                          e = vld1q_f32(v + c + 12);
        const float32x4_t f = vaddq_f32(a, d), g = vaddq_f32(b, e), h = vsubq_f32(a, d), i = vsubq_f32(b, e);
        vst1q_f32(v + c, steps_inside(vaddq_f32(f, g)));
        vst1q_f32(v + c + 4, steps_inside(vsubq_f32(f, g)));
        vst1q_f32(v + c + 8, steps_inside(vaddq_f32(h, i)));
        vst1q_f32(v + c + 12, steps_inside(vsubq_f32(h, i)));
    }
}

bt_status bt_hadamard_neon(const bt_hadamard *p, int64_t tile_begin, int64_t tile_end) {
    return bt_hadamard_blocks(p, tile_begin, tile_end, narrow);
}
