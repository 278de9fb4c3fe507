#include "neon_trit_depth.h"

/* A product is at most 121 * 128, and two of them fill 16 bits: each is widened at once. */
BT_NEON_INLINE int32x4_t dot(int32x4_t acc, int8x16_t w, int8x16_t q) {
    acc = vpadalq_s16(acc, vmull_s8(vget_low_s8(w), vget_low_s8(q)));
    return vpadalq_s16(acc, vmull_high_s8(w, q));
}

bt_status bt_trit_depth_linear_neon(const bt_trit_depth_linear *p, int64_t tile_begin, int64_t tile_end) {
    return trit_depth_linear(p, tile_begin, tile_end);
}
