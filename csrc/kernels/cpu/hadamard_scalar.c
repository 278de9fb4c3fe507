#include "hadamard_block.h"

static void narrow(float *v, int64_t n) {
    for (int64_t width = BT_HADAMARD_NARROW / 2; width > 0; width /= 2)
        bt_hadamard_step(v, n, width);
}

bt_status bt_hadamard_scalar(const bt_hadamard *p, int64_t tile_begin, int64_t tile_end) {
    return bt_hadamard_blocks(p, tile_begin, tile_end, narrow);
}
