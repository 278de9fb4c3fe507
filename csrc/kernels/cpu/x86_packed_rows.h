/* ternary_linear_packed with rows of w in the lanes, from natural order; see x86_lane_rows.h.
 *
 * A word is one of the 16 lanes of the definition, number i & 15, and the sums over lanes are additions of vectors:
 * lane by lane and in the same tree, so every bit is the same. A column of a block of tokens is a shift and a
 * permutation a vector, and a multiply-add for each vector and token. */
#ifndef BT_CPU_X86_PACKED_ROWS_H
#define BT_CPU_X86_PACKED_ROWS_H

#include "x86_lane_rows.h"

enum { LEVELS = 4, LEAST_TOKENS = 4 };

/* Adds column `at` of x, whose weights are the lowest codes, and shifts these. */
BT_ALWAYS_INLINE void add_column(floats acc[VECTORS][MOST_TOKENS], words codes[VECTORS], const float *const *x,
                                 int64_t at, const int vectors, const int tokens) {
    floats weight[VECTORS];
    BT_UNROLL
    for (int v = 0; v < vectors; v++) {
        weight[v] = decode(codes[v]);
        codes[v] = shift(codes[v]);
    }
    BT_UNROLL_8
    for (int c = 0; c < tokens; c++) {
        const floats value = splat(x[c] + at);
        BT_UNROLL
        for (int v = 0; v < vectors; v++)
            acc[v][c] = multiply_add(weight[v], value, acc[v][c]);
    }
}

/* Adds the columns of one lane of the definition, words `lane`, lane + 16 and so on; nothing is read beyond k. */
BT_ALWAYS_INLINE void add_lane(floats acc[VECTORS][MOST_TOKENS], const short_rows *rows, const float *const *x,
                               int64_t lane, int64_t k, const int vectors, const int tokens) {
    for (int64_t i = lane; STEPS * i < k; i += 16) {
        words codes[VECTORS];
        BT_UNROLL
        for (int v = 0; v < vectors; v++)
            codes[v] = load_words(rows->words + ROWS * i + LANES * v);
        const int64_t at = STEPS * i;
        if (at + STEPS <= k) {
            _Pragma("GCC unroll 16") for (int s = 0; s < STEPS; s++) add_column(acc, codes, x, at + s, vectors, tokens);
        } else {
            _Pragma("GCC unroll 1") for (int64_t c = at; c < k; c++) add_column(acc, codes, x, c, vectors, tokens);
        }
    }
}

/* `count` tokens from `token` on, at most `tokens`; past them the last one again. */
BT_ALWAYS_INLINE void short_block(const bt_ternary_linear_packed *p, const short_rows *rows, int64_t token, int count,
                                  const int vectors, const int tokens) {
    /* The 16 lanes so that those which the tree adds follow each other; of the first 8, 4, 2 every 2nd, 4th, 8th. */
    static const uint8_t order[16] = {0, 8, 4, 12, 2, 10, 6, 14, 1, 9, 5, 13, 3, 11, 7, 15};
    const int64_t lanes = bt_div_up(p->k, STEPS);
    const int used = lanes > 8 ? 16 : lanes > 4 ? 8 : lanes > 2 ? 4 : lanes > 1 ? 2 : 1;
    const float *x[MOST_TOKENS];
    floats sum[LEVELS][VECTORS][MOST_TOKENS], acc[VECTORS][MOST_TOKENS];
    for (int c = 0; c < tokens; c++)
        x[c] = bt_packed_xp_row(p, token + (c < count ? c : count - 1));
    for (int j = 0; j < used; j++) {
        BT_UNROLL
        for (int v = 0; v < vectors; v++) {
            BT_UNROLL_8
            for (int c = 0; c < tokens; c++)
                acc[v][c] = zeros();
        }
        add_lane(acc, rows, x, order[j * (16 / used)], p->k, vectors, tokens);
        int level = 0;
        for (; j >> level & 1; level++) {
            BT_UNROLL
            for (int v = 0; v < vectors; v++) {
                BT_UNROLL_8
                for (int c = 0; c < tokens; c++)
                    acc[v][c] = add(sum[level][v][c], acc[v][c]);
            }
        }
        if (j + 1 == used)
            break;
        BT_UNROLL
        for (int v = 0; v < vectors; v++) {
            BT_UNROLL_8
            for (int c = 0; c < tokens; c++)
                sum[level][v][c] = acc[v][c];
        }
    }
    _Alignas(64) float out[MOST_TOKENS][ROWS];
    BT_UNROLL
    for (int v = 0; v < vectors; v++) {
        const floats scale = load(rows->scale + LANES * v), bias = load(rows->bias + LANES * v);
        BT_UNROLL_8
        for (int c = 0; c < tokens; c++)
            store(out[c] + LANES * v, add(add(zeros(), multiply(acc[v][c], scale)), bias));
    }
    for (int c = 0; c < count; c++)
        store_rows(rows, p->y, p->y_type, (token + c) * p->ldy + rows->first, out[c]);
}

/* As few tokens more than there are as the blocks allow. */
BT_ALWAYS_INLINE void short_blocks(const bt_ternary_linear_packed *p, const short_rows *rows, int64_t token,
                                   int64_t end, const int vectors) {
    for (; end - token > LEAST_TOKENS; token += MOST_TOKENS)
        short_block(p, rows, token, end - token < MOST_TOKENS ? (int)(end - token) : MOST_TOKENS, vectors, MOST_TOKENS);
    if (token < end)
        short_block(p, rows, token, (int)(end - token), vectors, LEAST_TOKENS);
}

static __attribute__((noinline)) void two_vectors(const bt_ternary_linear_packed *p, const short_rows *rows,
                                                  bt_tile t) {
    short_blocks(p, rows, t.m0, t.m1, 2);
}

static __attribute__((noinline)) void one_vector(const bt_ternary_linear_packed *p, const short_rows *rows, bt_tile t) {
    short_blocks(p, rows, t.m0, t.m1, 1);
}

static bt_status short_tiles(const bt_ternary_linear_packed *p, int64_t tile_begin, int64_t tile_end) {
    BT_ASSERT(p->xp_type == BT_F32 && p->group == p->k && p->k <= SHORT_K);
    short_rows rows;
    for (int64_t index = tile_begin; index < tile_end; index++) {
        const bt_tile t = bt_tile_at(p->m, p->n, index);
        for (int64_t row = t.n0; row < t.n1; row += ROWS) {
            BEGIN_ROWS(&rows, p, row, t.n1);
            gather_words(&rows, 0, p->k);
            rows.count > LANES ? two_vectors(p, &rows, t) : one_vector(p, &rows, t);
        }
    }
    return BT_OK;
}

#endif
