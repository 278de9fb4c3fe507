#include "neon_trit_depth.h"

BT_NEON_INLINE int32x4_t dot(int32x4_t acc, int8x16_t w, int8x16_t q) {
    return vdotq_s32(acc, w, q);
}

bt_status bt_trit_depth_linear_neondot(const bt_trit_depth_linear *p, int64_t tile_begin, int64_t tile_end) {
    return trit_depth_linear(p, tile_begin, tile_end);
}
