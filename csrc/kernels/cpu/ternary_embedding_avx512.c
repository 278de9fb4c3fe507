#include "embedding_rows.h"

bt_status bt_ternary_embedding_avx512(const bt_ternary_embedding *p, int64_t row_begin, int64_t row_end) {
    return bt_embedding_rows(p, row_begin, row_end, bt_unpack_fill_avx512);
}
