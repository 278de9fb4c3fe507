/* ternary_linear_packed, 4 rows x 1..4 tokens in 16 fp32 lanes.
 *
 * 64 packed bytes are 16 words, one a lane; a word holds the 16 codes of columns 16 lane + s of its block:
 *
 *   bit   31 30 ... 3 2 1 0
 *   s      15   ...  1   0      the two low bits are the index that vpermilps takes into {0, +1, -1, 0}
 *
 * So every step s is a permutation, one multiply-add a token, and a shift by 2. Assumes float order in xp. */
#include "../ternary_linear_packed.h"
#include "x86.h"

typedef struct tile_t {
    __m512 acc[BT_ROWS][BT_TOKENS];
} tile_t;

#if defined(BT_SIMDE)
BT_ALWAYS_INLINE __m512 decode(__m512i codes) {
    const __m512 trits = _mm512_set_ps(0.0f, -1.0f, 1.0f, 0.0f, 0.0f, -1.0f, 1.0f, 0.0f, 0.0f, -1.0f, 1.0f, 0.0f, 0.0f,
                                       -1.0f, 1.0f, 0.0f);
    return _mm512_permutexvar_ps(_mm512_and_si512(codes, _mm512_set1_epi32(3)), trits);
}
#else
BT_ALWAYS_INLINE __m512 decode(__m512i codes) {
    const __m512 trits = _mm512_broadcast_f32x4(_mm_setr_ps(0.0f, 1.0f, -1.0f, 0.0f));
    return _mm512_permutevar_ps(trits, codes);
}
#endif

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
            bt_prefetch(w[0], (BT_ROWS * b + r) * BT_BLOCK_BYTES);
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
    const int64_t blocks = (end - begin) / BT_BLOCK, rest = bt_div_up((end - begin) % BT_BLOCK, 4);
    const uint8_t *w[BT_ROWS];
    for (int r = 0; r < BT_ROWS; r++)
        w[r] = rows->w[r] + begin / 4;
    add_blocks(tile, w, xp + begin, ldxp, blocks, tokens);
    if (rest == 0)
        return;
    uint8_t tail[BT_ROWS][BT_BLOCK_BYTES];
    bt_copy_tail(tail[0], BT_BLOCK_BYTES, w, blocks * BT_BLOCK_BYTES, rest);
    for (int r = 0; r < BT_ROWS; r++)
        w[r] = tail[r];
    add_blocks(tile, w, xp + begin + blocks * BT_BLOCK, ldxp, 1, tokens);
}

BT_ALWAYS_INLINE void run_rows(const bt_ternary_linear_packed *p, const bt_rows *rows, int64_t token,
                               const int tokens) {
    const float *xp = p->xp + token * p->ldxp;
    const int64_t span = bt_span(p->k, p->group, BT_BLOCK);
    const int quarters = span == p->group ? 4 : (int)(p->group / 64);
    __m128 sum[BT_TOKENS] = {_mm_setzero_ps(), _mm_setzero_ps(), _mm_setzero_ps(), _mm_setzero_ps()};
    int64_t g = 0;
    for (int64_t begin = 0; begin < p->k; begin += span) {
        const int64_t end = begin + span < p->k ? begin + span : p->k;
        float lanes[BT_TOKENS][BT_ROWS][16];
        tile_t tile;
        clear(&tile, tokens);
        add_span(&tile, rows, xp, p->ldxp, begin, end, tokens);
        BT_UNROLL
        for (int r = 0; r < BT_ROWS; r++) {
            BT_UNROLL
            for (int c = 0; c < tokens; c++)
                _mm512_storeu_ps(lanes[c][r], tile.acc[r][c]);
        }
        for (int64_t at = begin, lane = 0; at < end; at += p->group, lane += 4 * quarters, g++) {
            const __m128 scales = bt_scales(rows, g);
            for (int c = 0; c < tokens; c++)
                sum[c] = _mm_add_ps(sum[c], _mm_mul_ps(bt_tree(&lanes[c][0][lane], 16, quarters), scales));
        }
    }
    for (int c = 0; c < tokens; c++)
        bt_finish4(p->y, p->y_type, (token + c) * p->ldy + rows->first, sum[c], p->bias, p->bias_type, rows);
}

static void run_tile(const bt_ternary_linear_packed *p, bt_tile t) {
    for (int64_t token = t.m0; token < t.m1; token += BT_TOKENS)
        for (int64_t row = t.n0; row < t.n1; row += BT_ROWS) {
            const bt_rows rows = bt_rows_at(p->w, p->ldw, p->scale, p->lds, row, t.n1);
            switch (t.m1 - token) {
            case 1:
                run_rows(p, &rows, token, 1);
                break;
            case 2:
                run_rows(p, &rows, token, 2);
                break;
            case 3:
                run_rows(p, &rows, token, 3);
                break;
            default:
                run_rows(p, &rows, token, 4);
            }
        }
}

bt_status bt_ternary_linear_packed_avx512(const bt_ternary_linear_packed *p, int64_t tile_begin, int64_t tile_end) {
    BT_ASSERT(p->ldxp % BT_FLOAT_BLOCK == 0);
    if (!bt_group_fits(p->k, p->group))
        return bt_ternary_linear_packed_scalar(p, tile_begin, tile_end);
    for (int64_t index = tile_begin; index < tile_end; index++)
        run_tile(p, bt_tile_at(p->m, p->n, index));
    return BT_OK;
}
