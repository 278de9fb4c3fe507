#include "x86_i8_avx2.h"
#include "x86_linear_i8.h"

bt_status bt_linear_i8_avx2(const bt_linear_i8 *p, int64_t tile_begin, int64_t tile_end) {
    return linear_i8(p, tile_begin, tile_end);
}
