/* ternary_linear_packed, 4 rows x 1..4 tokens in 16 fp32 lanes.
 *
 * 64 packed bytes are 16 words, one a lane; a word holds the 16 codes of columns 16 lane + s of its block:
 *
 *   bit   31 30 ... 3 2 1 0
 *   s      15   ...  1   0      the two low bits are the index that vpermilps takes into {0, +1, -1, 0}
 *
 * So every step s is a permutation, one multiply-add a token, and a shift by 2. Assumes float order in xp. */
#include "x86_avx512.h"
#include "x86_packed_columns.h"
#include "x86_packed_rows.h"

typedef struct tile_t {
    __m512 acc[BT_ROWS][BT_TOKENS];
} tile_t;

BT_ALWAYS_INLINE void clear(tile_t *tile, const int tokens) {
    BT_UNROLL
    for (int r = 0; r < BT_ROWS; r++) {
        BT_UNROLL
        for (int c = 0; c < tokens; c++)
            tile->acc[r][c] = _mm512_setzero_ps();
    }
}

BT_ALWAYS_INLINE void add_blocks(tile_t *tile, const uint8_t *const w[BT_ROWS], const float *xp, int64_t ldxp,
                                 int64_t blocks, const int tokens) {
    for (int64_t b = 0; b < blocks; b++) {
        __m512i codes[BT_ROWS];
        BT_UNROLL
        for (int r = 0; r < BT_ROWS; r++) {
            bt_prefetch(w, (BT_ROWS * b + r) * BT_BLOCK_BYTES);
            codes[r] = _mm512_loadu_si512(w[r] + BT_BLOCK_BYTES * b);
        }
        BT_UNROLL
        for (int s = 0; s < 16; s++) {
            __m512 weight[BT_ROWS];
            BT_UNROLL
            for (int r = 0; r < BT_ROWS; r++) {
                weight[r] = decode(codes[r]);
                codes[r] = _mm512_srli_epi32(codes[r], 2);
            }
            BT_UNROLL
            for (int c = 0; c < tokens; c++) {
                const __m512 x = _mm512_loadu_ps(xp + c * ldxp + BT_BLOCK * b + 16 * s);
                BT_UNROLL
                for (int r = 0; r < BT_ROWS; r++)
                    tile->acc[r][c] = _mm512_fmadd_ps(weight[r], x, tile->acc[r][c]);
            }
        }
    }
}

/* The lanes of columns [begin, end), where begin is a multiple of 256. */
BT_ALWAYS_INLINE void add_span(tile_t *tile, const bt_rows *rows, const float *xp, int64_t ldxp, int64_t begin,
                               int64_t end, const int tokens) {
    const uint8_t *w[BT_ROWS];
    uint8_t tail[BT_ROWS][BT_BLOCK_BYTES];
    int64_t blocks = (end - begin) / BT_BLOCK, rest = bt_div_up((end - begin) % BT_BLOCK, 4);
    for (int r = 0; r < BT_ROWS; r++)
        w[r] = rows->w[r] + begin / 4;
    /* Once for the whole blocks, once for the tail: the loop stands here once, for more gcc 12 has no registers. */
    for (xp += begin;; blocks = 1, rest = 0) {
        add_blocks(tile, w, xp, ldxp, blocks, tokens);
        if (rest == 0)
            break;
        bt_copy_tail(tail[0], BT_BLOCK_BYTES, w, blocks * BT_BLOCK_BYTES, rest);
        for (int r = 0; r < BT_ROWS; r++)
            w[r] = tail[r];
        xp += blocks * BT_BLOCK;
    }
}

BT_ALWAYS_INLINE void sum_span(bt_lanes_f32 lanes, const bt_rows *rows, const void *xp, int64_t ldxp, int64_t begin,
                               int64_t end, const int tokens) {
    tile_t tile;
    clear(&tile, tokens);
    add_span(&tile, rows, xp, ldxp, begin, end, tokens);
    BT_UNROLL
    for (int r = 0; r < BT_ROWS; r++) {
        BT_UNROLL
        for (int c = 0; c < tokens; c++)
            _mm512_storeu_ps(lanes[c][r], tile.acc[r][c]);
    }
}

bt_status bt_ternary_linear_packed_avx512(const bt_ternary_linear_packed *p, int64_t tile_begin, int64_t tile_end) {
    if (p->xp_natural)
        return short_tiles(p, tile_begin, tile_end);
    return bt_packed_tiles(p, tile_begin, tile_end, BT_F32, sum_span);
}
