#define BT_WORD_BYTES 32
#include "trit_rows.h"

bt_status bt_trit_elementwise_avx2(const bt_trit_elementwise *p, int64_t tile_begin, int64_t tile_end) {
    return bt_trit_elementwise_tiles(p, tile_begin, tile_end);
}
