/* The frame of bitplane_matmul on a CPU, for the words and counts of the header that was included before. The file that
 * includes this says how many rows of a and of b are multiplied at once, BT_PRODUCT_M by BT_PRODUCT_N, or 1 by
 * BT_PRODUCT_ONE where a has one row; their counts stay in registers. */
#ifndef BT_CPU_PLANE_PRODUCTS_H
#define BT_CPU_PLANE_PRODUCTS_H

#include "../bitplane_matmul.h"
#include "../bitplane_pack.h"

enum {
    BT_PLANE_WORDS = BT_PLANE_BYTES / BT_WORD_BYTES,
    BT_PRODUCTS = BT_PRODUCT_M * BT_PRODUCT_N > BT_PRODUCT_ONE ? BT_PRODUCT_M * BT_PRODUCT_N : BT_PRODUCT_ONE,
    BT_PRODUCTS_BY_4 = (BT_PRODUCTS + 3) / 4 * 4
};

/* M rows of a by N rows of b. */
static inline __attribute__((always_inline)) void bt_plane_tile(const bt_bitplane_matmul *p, int64_t i, int64_t j,
                                                                const int M, const int N) {
    const uint8_t *const a = p->a + i * p->lda, *const b = p->b + j * p->ldb;
    bt_word wide[BT_PRODUCTS_BY_4];
    memset(wide, 0, sizeof wide);
    for (int64_t block = 0; block < p->blocks;) {
        const int64_t run = BT_COUNT_RUN / BT_PLANE_WORDS;
        const int64_t end = p->blocks - block < run ? p->blocks : block + run;
        bt_word both[BT_PRODUCTS], opposite[BT_PRODUCTS];
        memset(both, 0, sizeof both);
        memset(opposite, 0, sizeof opposite);
        for (; block < end; block++)
#pragma GCC unroll 1
            for (int w = 0; w < BT_PLANE_WORDS; w++) {
                const int64_t at = block * BT_PLANE_BLOCK_BYTES + w * BT_WORD_BYTES;
                for (int c = 0; c < N; c++) {
                    const bt_word magnitude = bt_load_word(b + c * p->ldb + at);
                    const bt_word sign = bt_load_word(b + c * p->ldb + at + BT_PLANE_BYTES);
                    for (int r = 0; r < M; r++) {
                        const bt_word m = magnitude & bt_load_word(a + r * p->lda + at);
                        const bt_word s = sign ^ bt_load_word(a + r * p->lda + at + BT_PLANE_BYTES);
                        both[r * N + c] = bt_add_counts(both[r * N + c], bt_bits(m));
                        opposite[r * N + c] = bt_add_counts(opposite[r * N + c], bt_bits(m & s));
                    }
                }
            }
        for (int x = 0; x < M * N; x++)
            wide[x] += bt_widen(both[x]) - 2 * bt_widen(opposite[x]);
    }
    int32_t sums[BT_PRODUCTS_BY_4];
    for (int x = 0; x < M * N; x += 4)
        bt_totals(wide + x, sums + x);
    for (int r = 0; r < M; r++)
        for (int c = 0; c < N; c++)
            p->y[(i + r) * p->ldy + j + c] = sums[r * N + c];
}

/* All rows [m0, m1) of a by N rows of b. */
static inline __attribute__((always_inline)) void bt_plane_rows(const bt_bitplane_matmul *p, const bt_tile *t,
                                                                int64_t j, const int N) {
    int64_t i = t->m0;
    for (; i + BT_PRODUCT_M <= t->m1; i += BT_PRODUCT_M)
        bt_plane_tile(p, i, j, BT_PRODUCT_M, N);
    for (; i < t->m1; i++)
        bt_plane_tile(p, i, j, 1, N);
}

static inline __attribute__((always_inline)) bt_status bt_bitplane_matmul_tiles(const bt_bitplane_matmul *p,
                                                                                int64_t tile_begin, int64_t tile_end) {
    for (int64_t index = tile_begin; index < tile_end; index++) {
        const bt_tile t = bt_tile_at(p->m, p->n, index);
        int64_t j = t.n0;
        for (; t.m1 - t.m0 == 1 && j + BT_PRODUCT_ONE <= t.n1; j += BT_PRODUCT_ONE)
            bt_plane_tile(p, t.m0, j, 1, BT_PRODUCT_ONE);
        for (; j + BT_PRODUCT_N <= t.n1; j += BT_PRODUCT_N)
            bt_plane_rows(p, &t, j, BT_PRODUCT_N);
        for (; j < t.n1; j++)
            bt_plane_rows(p, &t, j, 1);
    }
    return BT_OK;
}

#endif
