#include "neon_linear_i8.h"

/* A product is at most 2^14, and two of them fill 16 bits: each is widened at once. */
BT_NEON_INLINE int32x4_t dot(int32x4_t acc, int8x16_t w, int8x16_t q) {
    acc = vpadalq_s16(acc, vmull_s8(vget_low_s8(w), vget_low_s8(q)));
    return vpadalq_s16(acc, vmull_high_s8(w, q));
}

bt_status bt_linear_i8_neon(const bt_linear_i8 *p, int64_t tile_begin, int64_t tile_end) {
    return linear_i8(p, tile_begin, tile_end);
}
