#include "neon_linear_i8.h"

BT_NEON_INLINE int32x4_t dot(int32x4_t acc, int8x16_t w, int8x16_t q) {
    return vdotq_s32(acc, w, q);
}

bt_status bt_linear_i8_neondot(const bt_linear_i8 *p, int64_t tile_begin, int64_t tile_end) {
    return linear_i8(p, tile_begin, tile_end);
}
