#include "fields_run.h"

bt_status bt_ternary_from_fields_scalar(const bt_ternary_from_fields *p, int64_t row_begin, int64_t row_end) {
    for (int64_t r = row_begin; r < row_end; r++) {
        const uint8_t *data = p->data + r * p->ldd;
        uint8_t *w = p->w + r * p->ldw;
        int reserved = 0;
        for (int64_t block = 0; block < p->blocks; block++, data += p->ldblock)
            for (int64_t run = 0; run < p->runs; run++, w += p->run)
                reserved |= bt_fields_run(p, data + run * p->run, w, 0);
        p->reserved[r] = (uint8_t)reserved;
    }
    return BT_OK;
}
