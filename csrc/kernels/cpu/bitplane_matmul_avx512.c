#include "counts_avx512.h"

#define BT_PRODUCT_M 3
#define BT_PRODUCT_N 2
#define BT_PRODUCT_ONE 6
#include "plane_products.h"

bt_status bt_bitplane_matmul_avx512(const bt_bitplane_matmul *p, int64_t tile_begin, int64_t tile_end) {
    return bt_bitplane_matmul_tiles(p, tile_begin, tile_end);
}
