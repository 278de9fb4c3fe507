/* A table holds the five codes of each byte, apart by as many bits as they are in w: four bytes joined are then bytes
 * of w. Making it takes as long as decoding a few thousand bytes, once for all rows of a call. */
#include "../ternary_from_base3.h"

typedef struct table_t {
    uint64_t codes[256];
} table_t;

/* Rows: codes side by side, the lowest digit first. Blocks: a code in each byte, the highest digit first. */
static void fill_table(table_t *table, int layout) {
    static const unsigned code_of[3] = {2, 0, 1}; /* digit 0 is -1 */
    const int rows = layout == BT_BASE3_ROWS;
    for (unsigned byte = 0; byte < 256; byte++) {
        /* A rounded byte is v + rounding / 243 times 256 / 243, and the rounding is less than 243. */
        unsigned v = rows ? byte : byte * 243u >> 8;
        const int made_of_trits = rows ? byte < 243 : (byte * 243u & 255u) < 243u;
        table->codes[byte] = 0;
        for (int i = 0; i < 5; i++, v /= 3)
            table->codes[byte] |= (uint64_t)(made_of_trits ? code_of[v % 3] : 3u) << (rows ? 2 * i : 8 * (4 - i));
    }
}

/* Four bytes are 20 trits, five bytes of w. */
static void decode_row(const table_t *table, const uint8_t *data, uint8_t *w, int64_t k) {
    const int64_t bytes = bt_div_up(k, 5), used = bt_div_up(k, 4);
    const int64_t quads = bytes / 4 < used / 5 ? bytes / 4 : used / 5;
    for (int64_t q = 0; q < quads; q++, data += 4, w += 5) {
        const uint64_t codes = table->codes[data[0]] | table->codes[data[1]] << 10 | table->codes[data[2]] << 20 |
                               table->codes[data[3]] << 30;
        for (int i = 0; i < 5; i++)
            w[i] = (uint8_t)(codes >> (8 * i));
    }
    uint64_t rest = 0;
    for (int64_t j = 0; j < bytes - 4 * quads; j++)
        rest |= table->codes[data[j]] << (10 * j);
    for (int64_t i = 0; i < used - 5 * quads; i++)
        w[i] = (uint8_t)(rest >> (8 * i));
}

/* A part of a block: four neighbours of one digit are a byte of w. `bytes` and `digits` are constants. */
static inline void decode_part(const table_t *table, const uint8_t *data, uint8_t *w, int bytes, int digits) {
    for (int m = 0; m < bytes; m += 4) {
        const uint64_t codes = table->codes[data[m]] | table->codes[data[m + 1]] << 2 | table->codes[data[m + 2]] << 4 |
                               table->codes[data[m + 3]] << 6;
        for (int d = 0; d < digits; d++)
            w[d * bytes / 4 + m / 4] = (uint8_t)(codes >> (8 * d));
    }
}

/* The last part of a block of 128: two bytes, of which two digits are a byte of w. */
static void decode_pair(const table_t *table, const uint8_t *data, uint8_t *w) {
    const uint64_t codes = table->codes[data[0]] | table->codes[data[1]] << 2;
    for (int i = 0; i < 2; i++)
        w[i] = (uint8_t)((codes >> (16 * i) & 15u) | (codes >> (16 * i + 8) & 15u) << 4);
}

static void decode_tq1(const table_t *table, const uint8_t *data, uint8_t *w, int64_t k) {
    for (int64_t block = 0; block < k / 256; block++, data += 54, w += 64) {
        decode_part(table, data, w, 32, 5);
        decode_part(table, data + 32, w + 40, 16, 5);
        decode_part(table, data + 48, w + 60, 4, 4);
    }
}

static void decode_ptq1(const table_t *table, const uint8_t *data, uint8_t *w, int64_t k) {
    for (int64_t block = 0; block < k / 128; block++, data += 28, w += 32) {
        decode_part(table, data, w, 16, 5);
        decode_part(table, data + 16, w + 20, 8, 5);
        decode_pair(table, data + 24, w + 30);
    }
}

bt_status bt_ternary_from_base3_scalar(const bt_ternary_from_base3 *p, int64_t row_begin, int64_t row_end) {
    table_t table;
    fill_table(&table, p->layout);
    for (int64_t r = row_begin; r < row_end; r++) {
        const uint8_t *data = p->data + r * p->ldd;
        uint8_t *w = p->w + r * p->ldw;
        if (p->layout == BT_BASE3_ROWS)
            decode_row(&table, data, w, p->k);
        else if (p->layout == BT_BASE3_TQ1)
            decode_tq1(&table, data, w, p->k);
        else
            decode_ptq1(&table, data, w, p->k);
    }
    return BT_OK;
}
