/* ternary_linear_packed of bf16 activations, 4 rows x 1..4 tokens, vdpbf16ps in 16 fp32 lanes.
 *
 * 64 packed bytes are 16 words, one a lane. The four low bits of a word, two codes, are the index that vpermd takes
 * into the 16 pairs of {0, +1, -1} as bf16; it reads no other bits, so every step is a permutation, one dot product a
 * token, and a shift by 4. Assumes pair order in xp.
 *
 * A token's sums are the same instructions in the same order however many tokens there are. */
#include "x86_packed_columns.h"

typedef struct tile_t {
    __m512 acc[BT_ROWS][BT_TOKENS];
} tile_t;

/* acc + the two products of each lane. As an instruction, which needs no vector type of its own. The twin rounds
 * otherwise than the CPU, and it keeps subnormals. */
#if defined(BT_SIMDE)
BT_ALWAYS_INLINE __m512 dot_bf16(__m512 acc, __m512i weights, __m512i x) {
    const __m512i upper = _mm512_set1_epi32((int)0xffff0000u);
    const __m512 w0 = _mm512_castsi512_ps(_mm512_slli_epi32(weights, 16));
    const __m512 x0 = _mm512_castsi512_ps(_mm512_slli_epi32(x, 16));
    const __m512 w1 = _mm512_castsi512_ps(_mm512_and_si512(weights, upper));
    const __m512 x1 = _mm512_castsi512_ps(_mm512_and_si512(x, upper));
    return _mm512_fmadd_ps(w0, x0, _mm512_fmadd_ps(w1, x1, acc));
}
BT_ALWAYS_INLINE __m512i decode(__m512i codes, __m512i pairs) {
    return _mm512_permutexvar_epi32(_mm512_and_si512(codes, _mm512_set1_epi32(15)), pairs);
}
#else
BT_ALWAYS_INLINE __m512 dot_bf16(__m512 acc, __m512i weights, __m512i x) {
    __asm__("vdpbf16ps %2, %1, %0" : "+v"(acc) : "v"(weights), "v"(x));
    return acc;
}
BT_ALWAYS_INLINE __m512i decode(__m512i codes, __m512i pairs) {
    return _mm512_permutexvar_epi32(codes, pairs);
}
#endif

/* The lower code picks the lower half. */
BT_ALWAYS_INLINE __m512i all_pairs(void) {
    const __m512i one = _mm512_set1_epi32(0x3f80), minus_one = _mm512_set1_epi32(0xbf80);
    const __m512i low = _mm512_mask_mov_epi32(_mm512_maskz_mov_epi32(0x2222, one), 0x4444, minus_one);
    const __m512i high = _mm512_mask_mov_epi32(_mm512_maskz_mov_epi32(0x00f0, one), 0x0f00, minus_one);
    return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}

BT_ALWAYS_INLINE void clear(tile_t *tile, const int tokens) {
    BT_UNROLL
    for (int r = 0; r < BT_ROWS; r++) {
        BT_UNROLL
        for (int c = 0; c < tokens; c++)
            tile->acc[r][c] = _mm512_setzero_ps();
    }
}

BT_ALWAYS_INLINE void add_blocks(tile_t *tile, const uint8_t *const w[BT_ROWS], const uint16_t *xp, int64_t ldxp,
                                 int64_t blocks, const int tokens) {
    const __m512i pairs = all_pairs();
    for (int64_t b = 0; b < blocks; b++) {
        __m512i codes[BT_ROWS];
        BT_UNROLL
        for (int r = 0; r < BT_ROWS; r++) {
            bt_prefetch(w, (BT_ROWS * b + r) * BT_BLOCK_BYTES);
            codes[r] = _mm512_loadu_si512(w[r] + BT_BLOCK_BYTES * b);
        }
        BT_UNROLL
        for (int s = 0; s < 8; s++) {
            __m512i weights[BT_ROWS];
            BT_UNROLL
            for (int r = 0; r < BT_ROWS; r++) {
                weights[r] = decode(codes[r], pairs);
                codes[r] = _mm512_srli_epi32(codes[r], 4);
            }
            BT_UNROLL
            for (int c = 0; c < tokens; c++) {
                const __m512i x = _mm512_loadu_si512(xp + c * ldxp + BT_BLOCK * b + 32 * s);
                BT_UNROLL
                for (int r = 0; r < BT_ROWS; r++)
                    tile->acc[r][c] = dot_bf16(tile->acc[r][c], weights[r], x);
            }
        }
    }
}

/* The lanes of columns [begin, end), where begin is a multiple of 256. */
BT_ALWAYS_INLINE void add_span(tile_t *tile, const bt_rows *rows, const uint16_t *xp, int64_t ldxp, int64_t begin,
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

bt_status bt_ternary_linear_packed_avx512bf16(const bt_ternary_linear_packed *p, int64_t tile_begin, int64_t tile_end) {
    return bt_packed_tiles(p, tile_begin, tile_end, BT_BF16, sum_span);
}
