#include "counts_avx512popcnt.h"

#include "reduce_rows.h"

bt_status bt_trit_reduce_avx512popcnt(const bt_trit_reduce *p, int64_t tile_begin, int64_t tile_end) {
    return bt_trit_reduce_tiles(p, tile_begin, tile_end);
}
