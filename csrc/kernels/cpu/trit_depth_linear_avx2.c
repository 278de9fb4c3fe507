#define ROWS_HAVE_OFFSET
#include "x86_i8_avx2.h"
#include "x86_trit_depth.h"

bt_status bt_trit_depth_linear_avx2(const bt_trit_depth_linear *p, int64_t tile_begin, int64_t tile_end) {
    return trit_depth_linear(p, tile_begin, tile_end);
}
