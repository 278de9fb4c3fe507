#include "unpack_rows.h"

void bt_unpack_fill_scalar(const uint8_t *w, char *y, int64_t begin, int64_t end, const bt_unpack_values *v) {
    BT_UNPACK_BY_SIZE(bt_unpack_columns, w, y, begin, end, v);
}

bt_status bt_ternary_unpack_scalar(const bt_ternary_unpack *p, int64_t row_begin, int64_t row_end) {
    return bt_unpack_rows(p, row_begin, row_end, bt_unpack_fill_scalar);
}
