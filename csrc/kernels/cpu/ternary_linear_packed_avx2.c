/* ternary_linear_packed, 4 rows x 1..4 tokens; the 16 fp32 lanes of the definition are two halves of 8.
 *
 * 32 packed bytes are 8 words, one a lane; a word holds the 16 codes of columns 16 lane + s of its half block:
 *
 *   bit   31 30 ... 3 2 1 0
 *   s      15   ...  1   0      the two low bits are the index that vpermilps takes into {0, +1, -1, 0}
 *
 * So every step s is a permutation, one multiply-add a token, and a shift by 2. Assumes float order in xp. */
#include "x86_avx2.h"
#include "x86_packed_columns.h"
#include "x86_packed_rows.h"

enum { HALF_LANES = 8, HALF_BYTES = 32 };

enum { CHUNK = 4 }; /* blocks of four tokens that stay in L1 while the passes over them follow */

BT_ALWAYS_INLINE void add_block(__m256 acc[4][4], const uint8_t *const *w, int64_t at, const float *x, int64_t ldxp,
                                const int rows, const int tokens) {
    __m256i codes[4];
    BT_UNROLL
    for (int r = 0; r < rows; r++)
        codes[r] = _mm256_loadu_si256((const __m256i *)(w[r] + at));
    BT_UNROLL
    for (int s = 0; s < 16; s++) {
        __m256 weight[4];
        BT_UNROLL
        for (int r = 0; r < rows; r++) {
            weight[r] = decode(codes[r]);
            codes[r] = _mm256_srli_epi32(codes[r], 2);
        }
        BT_UNROLL
        for (int c = 0; c < tokens; c++) {
            const __m256 v = _mm256_loadu_ps(x + c * ldxp + 16 * s);
            BT_UNROLL
            for (int r = 0; r < rows; r++)
                acc[r][c] = _mm256_fmadd_ps(weight[r], v, acc[r][c]);
        }
    }
}

/* Adds one half of `blocks` blocks to the lanes of rows row.. and of all tokens; unless `add`, to zeros. */
BT_ALWAYS_INLINE void run_pass(bt_lanes_f32 lanes, const uint8_t *const *w, const float *xp, int64_t ldxp,
                               int64_t blocks, int add, int row, int half, const int rows, const int tokens) {
    const int lane = HALF_LANES * half;
    __m256 acc[4][4];
    BT_UNROLL
    for (int r = 0; r < rows; r++) {
        BT_UNROLL
        for (int c = 0; c < tokens; c++)
            acc[r][c] = add ? _mm256_loadu_ps(&lanes[c][row + r][lane]) : _mm256_setzero_ps();
    }
    for (int64_t b = 0; b < blocks; b++)
        add_block(acc, w + row, b * BT_BLOCK_BYTES + HALF_BYTES * half, xp + b * BT_BLOCK + lane, ldxp, rows, tokens);
    BT_UNROLL
    for (int r = 0; r < rows; r++) {
        BT_UNROLL
        for (int c = 0; c < tokens; c++)
            _mm256_storeu_ps(&lanes[c][row + r][lane], acc[r][c]);
    }
}

/* One token: 4 rows at a time; more tokens: 2 rows, so that accumulators, codes and weights fit into 16 registers. */
BT_ALWAYS_INLINE void add_blocks(bt_lanes_f32 lanes, const uint8_t *const *w, const float *xp, int64_t ldxp,
                                 int64_t blocks, int add, const int tokens) {
    const int rows = tokens == 1 ? 4 : 2;
    for (int row = 0; row < BT_ROWS; row += rows)
        for (int half = 0; half < 2; half++)
            run_pass(lanes, w, xp, ldxp, blocks, add, row, half, rows, tokens);
}

/* The lanes of columns [begin, end), where begin is a multiple of 256. */
BT_ALWAYS_INLINE void sum_span(bt_lanes_f32 lanes, const bt_rows *rows, const void *prepared, int64_t ldxp,
                               int64_t begin, int64_t end, const int tokens) {
    const float *const xp = prepared;
    const int64_t stop = begin + (end - begin) / BT_BLOCK * BT_BLOCK;
    const uint8_t *w[BT_ROWS];
    for (int64_t k = begin; k < stop; k += CHUNK * BT_BLOCK) {
        const int64_t left = (stop - k) / BT_BLOCK;
        for (int i = 0; i < BT_ROWS * CHUNK; i++)
            bt_prefetch(rows->w, BT_ROWS * k / 4 + i * BT_BLOCK_BYTES);
        for (int r = 0; r < BT_ROWS; r++)
            w[r] = rows->w[r] + k / 4;
        add_blocks(lanes, w, xp + k, ldxp, left < CHUNK ? left : CHUNK, k > begin, tokens);
    }
    if (stop < end) {
        uint8_t tail[BT_ROWS][BT_BLOCK_BYTES];
        bt_copy_tail(tail[0], BT_BLOCK_BYTES, rows->w, stop / 4, bt_div_up(end - stop, 4));
        for (int r = 0; r < BT_ROWS; r++)
            w[r] = tail[r];
        add_blocks(lanes, w, xp + stop, ldxp, 1, stop > begin, tokens);
    }
}

bt_status bt_ternary_linear_packed_avx2(const bt_ternary_linear_packed *p, int64_t tile_begin, int64_t tile_end) {
    if (p->xp_natural)
        return short_tiles(p, tile_begin, tile_end);
    return bt_packed_tiles(p, tile_begin, tile_end, BT_F32, sum_span);
}
