#define BT_BLOCK_WIDTH 4
#include "block_rows.h"

bt_status bt_block_unpack_neon(const bt_block_unpack *p, int64_t row_begin, int64_t row_end) {
    return bt_block_unpack_rows(p, row_begin, row_end);
}
