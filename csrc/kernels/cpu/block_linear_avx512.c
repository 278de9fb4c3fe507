#define BT_BLOCK_WIDTH 16
#include "block_rows.h"

bt_status bt_block_linear_avx512(const bt_block_linear *p, int64_t tile_begin, int64_t tile_end) {
    return bt_block_linear_tiles(p, tile_begin, tile_end);
}
