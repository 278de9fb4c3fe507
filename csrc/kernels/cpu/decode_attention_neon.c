#include "../decode_attention.h"

#include "neon.h"

#define BT_ATTENTION_INLINE BT_NEON_INLINE
enum { WIDTH = 4, COLUMNS = 4 };
typedef float vec __attribute__((vector_size(16)));
typedef int32_t ivec __attribute__((vector_size(16)));
typedef uint32_t uvec __attribute__((vector_size(16)));

BT_NEON_INLINE vec bt_attention_fma(vec a, vec b, vec c) {
    return (vec)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
}
BT_NEON_INLINE vec bt_attention_load(const void *from, int type) {
    return (vec)bt_neon_load4(from, type, 0);
}

/* The four lanes that are left of a key, its first two added to its last two. */
BT_NEON_INLINE float32x2_t two_lanes(const float *lanes) {
    const float32x4_t low = vaddq_f32(vld1q_f32(lanes), vld1q_f32(lanes + 8));
    const float32x4_t high = vaddq_f32(vld1q_f32(lanes + 4), vld1q_f32(lanes + 12));
    const float32x4_t four = vaddq_f32(low, high);
    return vadd_f32(vget_low_f32(four), vget_high_f32(four));
}

BT_NEON_INLINE void bt_attention_sums(const float *lanes, float *sum) {
#pragma GCC unroll 8
    for (int t = 0; t < 16; t += 2, lanes += 32)
        vst1_f32(sum + t, vpadd_f32(two_lanes(lanes), two_lanes(lanes + 16)));
}

#include "attention_vectors.h"

bt_status bt_decode_attention_neon(const bt_decode_attention *p, int64_t tile_begin, int64_t tile_end) {
    return bt_attention_run(p, tile_begin, tile_end);
}
