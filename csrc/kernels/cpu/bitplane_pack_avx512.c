#define BT_WORD_BYTES 64
#include "plane_rows.h"

bt_status bt_bitplane_pack_avx512(const bt_bitplane_pack *p, int64_t row_begin, int64_t row_end) {
    return bt_bitplane_pack_rows(p, row_begin, row_end);
}
