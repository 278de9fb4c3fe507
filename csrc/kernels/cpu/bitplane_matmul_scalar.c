#include "counts_scalar.h"

#define BT_PRODUCT_M 1
#define BT_PRODUCT_N 1
#define BT_PRODUCT_ONE 1
#include "plane_products.h"

bt_status bt_bitplane_matmul_scalar(const bt_bitplane_matmul *p, int64_t tile_begin, int64_t tile_end) {
    return bt_bitplane_matmul_tiles(p, tile_begin, tile_end);
}
