/* Blocks of 4 x 4 codes, one byte of each of four rows, are transposed inside a 32-bit word, whose bytes are then bytes
 * of four rows of t. A buffer of 16 KiB collects them, so that t is written in runs of a cache line whatever its row
 * stride. Portable C that compilers vectorise: the products that follow take longer by two orders. */
#include "../ternary_transpose.h"

#include <string.h>

enum { QUADS = 64, BYTES = BT_TRANSPOSE_TILE / 4 }; /* rows / 4 and bytes of a row that a buffer takes */

typedef struct buffer_t {
    uint8_t row[BT_TRANSPOSE_TILE][QUADS];
} buffer_t;

/* Element (r, c) sits at bit 8 r + 2 c: swap neighbours off the diagonal, then the blocks of 2 x 2. */
static uint32_t transpose_4x4(uint32_t x) {
    uint32_t t = (x ^ x >> 6) & 0x00cc00ccu;
    x ^= t ^ t << 6;
    t = (x ^ x >> 12) & 0x0000f0f0u;
    return x ^ t ^ t << 12;
}

/* Rows 4 quad .. of w to column `quad` of the buffer; rows and bytes that do not exist count as 0. The two counts are
 * constants where nothing is missing, so that no copy is a call. */
static inline void fill(buffer_t *buffer, const uint8_t *w, int64_t ldw, int64_t quad, int rows, size_t bytes) {
    uint8_t run[4][BYTES] = {{0}};
    uint32_t words[BYTES];
    for (int r = 0; r < rows; r++)
        memcpy(run[r], w + (4 * quad + r) * ldw, bytes);
    for (int j = 0; j < BYTES; j++)
        words[j] =
            transpose_4x4(run[0][j] | (uint32_t)run[1][j] << 8 | (uint32_t)run[2][j] << 16 | (uint32_t)run[3][j] << 24);
    for (int j = 0; j < BYTES; j++)
        for (int i = 0; i < 4; i++)
            buffer->row[4 * j + i][quad] = (uint8_t)(words[j] >> (8 * i));
}

bt_status bt_ternary_transpose_scalar(const bt_ternary_transpose *p, int64_t tile_begin, int64_t tile_end) {
    for (int64_t tile = tile_begin; tile < tile_end; tile++) {
        const int64_t c0 = tile * BT_TRANSPOSE_TILE;
        const int64_t columns = p->k - c0 < BT_TRANSPOSE_TILE ? p->k - c0 : BT_TRANSPOSE_TILE;
        for (int64_t r0 = 0; r0 < p->n; r0 += 4 * QUADS) {
            const int64_t rows = p->n - r0 < 4 * QUADS ? p->n - r0 : 4 * QUADS, quads = bt_div_up(rows, 4);
            buffer_t buffer;
            const uint8_t *w = p->w + r0 * p->ldw + c0 / 4;
            for (int64_t quad = 0; quad < quads; quad++)
                if (columns == BT_TRANSPOSE_TILE && 4 * quad + 4 <= rows)
                    fill(&buffer, w, p->ldw, quad, 4, BYTES);
                else
                    fill(&buffer, w, p->ldw, quad, rows - 4 * quad < 4 ? (int)(rows - 4 * quad) : 4,
                         (size_t)bt_div_up(columns, 4));
            for (int64_t c = 0; c < columns; c++)
                memcpy(p->t + (c0 + c) * p->ldt + r0 / 4, buffer.row[c], (size_t)quads);
        }
    }
    return BT_OK;
}
