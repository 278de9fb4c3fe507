/* ternary_linear_w2a8 with small scale groups, for several rows of q: rows of w in the lanes, see x86_lane_rows.h.
 *
 * A group is a reduction, and with columns in the lanes one over lanes, for every four rows of w. Here a group ends
 * with a conversion, two products and a sum a vector. Rows of a tile are taken in spans of columns: what code + 2 adds
 * to a group is found once a tile, words and scales are gathered once a block of rows, and totals stay with the tile.
 */
#ifndef BT_CPU_X86_W2A8_GROUPS_H
#define BT_CPU_X86_W2A8_GROUPS_H

#include "x86_w2a8_rows.h"

enum { QUARTER = 64, SPAN = SHORT_K, SPAN_GROUPS = SPAN / QUARTER };

typedef union group_totals {
    _Alignas(64) float one[BT_TILE_M][BT_TILE_N];   /* of one digit */
    _Alignas(64) double wide[BT_TILE_M][BT_TILE_N]; /* of more */
} group_totals;

/* What a span of columns has for the rows of q of a tile, and for a block of rows of w. */
typedef struct group_span {
    int32_t offset[BT_TILE_M * BT_MAX_DIGITS][SPAN_GROUPS];
    _Alignas(64) float scale[SPAN_GROUPS][ROWS];
    int64_t begin, end, group;
    int groups;
} group_span;

/* The sum of a group of at most MOST_GROUP columns, code + 2, that begins with `offset`. With GROUP_SUMS a variant has
 * its own, in int16, which is enough for 128. */
#if defined(GROUP_SUMS)
enum { MOST_GROUP = 128 };
BT_ALWAYS_INLINE words begin_sum(int32_t offset);
BT_ALWAYS_INLINE words add_quad(words acc, words u, words q);
BT_ALWAYS_INLINE words end_sum(words acc, int32_t offset);
#else
enum { MOST_GROUP = BT_BLOCK };
BT_ALWAYS_INLINE words begin_sum(int32_t offset) {
    return splat_word(offset);
}
BT_ALWAYS_INLINE words add_quad(words acc, words u, words q) {
    return dot_u8_i8(acc, u, q);
}
BT_ALWAYS_INLINE words end_sum(words acc, int32_t offset) {
    (void)offset;
    return acc;
}
#endif

/* -2 sum q of each group of a span. */
static void find_offsets(group_span *s, const int8_t *q, int64_t ldq, int count) {
    for (int c = 0; c < count; c++)
        for (int g = 0; g < s->groups; g++) {
            const int64_t at = g * s->group;
            const int8_t *x = q + c * ldq + (at & -BT_BLOCK) + at % BT_BLOCK / PLANES;
            __m128i sum = _mm_setzero_si128();
            for (int i = 0; i < (int)s->group / PLANES; i += 16)
                for (int plane = 0; plane < PLANES; plane++) {
                    const __m128i v = _mm_loadu_si128((const __m128i *)(x + BT_BLOCK / PLANES * plane + i));
                    const __m128i pairs = _mm_maddubs_epi16(_mm_set1_epi8(OFFSET), v);
                    sum = _mm_sub_epi32(sum, _mm_madd_epi16(pairs, _mm_set1_epi16(1)));
                }
            sum = _mm_add_epi32(sum, _mm_srli_si128(sum, 8));
            s->offset[c][g] = _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_srli_si128(sum, 4)));
        }
}

/* to[group * stride + row], of `groups` groups from number `first` on; past the last of `count` rows it stands in. */
static void gather_scales(float *to, const int stride, const bt_ternary_linear_w2a8 *p, int64_t row, int count,
                          int lanes, int64_t first, int groups) {
    for (int r = 0; r < lanes; r += 4) {
        const float *from[4];
        for (int i = 0; i < 4; i++)
            from[i] = p->scale + (row + (r + i < count ? r + i : count - 1)) * p->lds + first;
        int g = 0;
        for (; g + 4 <= groups; g += 4) {
            __m128 scale[4];
            for (int i = 0; i < 4; i++)
                scale[i] = _mm_loadu_ps(from[i] + g);
            _MM_TRANSPOSE4_PS(scale[0], scale[1], scale[2], scale[3]);
            for (int i = 0; i < 4; i++)
                _mm_store_ps(to + (g + i) * stride + r, scale[i]);
        }
        for (; g < groups; g++)
            for (int i = 0; i < 4; i++)
                to[g * stride + r + i] = from[i][g];
    }
}

/* The sums of a group, number `g` of the span, for rows of q from `q` on, past the last of which it stands in. */
BT_ALWAYS_INLINE void group_sums(words sums[VECTORS][MOST_TOKENS], const group_span *s, int g, const short_rows *rows,
                                 const int8_t *q, int64_t ldq, const int32_t (*offset)[SPAN_GROUPS], int count,
                                 const int vectors, const int q_rows) {
    words acc[VECTORS][MOST_TOKENS];
    const int8_t *x[MOST_TOKENS];
    BT_UNROLL_8
    for (int c = 0; c < q_rows; c++) {
        const int row = c < count ? c : count - 1;
        x[c] = q + row * ldq;
        BT_UNROLL
        for (int v = 0; v < vectors; v++)
            acc[v][c] = begin_sum(offset[row][g]);
    }
    const int64_t steps = s->group / STEPS;
    for (int64_t i = g * steps; i < (g + 1) * steps; i++) {
        words codes[VECTORS];
        BT_UNROLL
        for (int v = 0; v < vectors; v++)
            codes[v] = load_words(rows->words + ROWS * i + LANES * v);
        const int64_t at = BT_BLOCK * (i / 16) + 4 * (i % 16);
        BT_UNROLL
        for (int plane = 0; plane < PLANES; plane++) {
            words u[VECTORS];
            BT_UNROLL
            for (int v = 0; v < vectors; v++) {
                u[v] = low_codes(codes[v]);
                codes[v] = shift(codes[v]);
            }
            BT_UNROLL_8
            for (int c = 0; c < q_rows; c++) {
                const words quad = splat_quad(x[c] + at + BT_BLOCK / PLANES * plane);
                BT_UNROLL
                for (int v = 0; v < vectors; v++)
                    acc[v][c] = add_quad(acc[v][c], u[v], quad);
            }
        }
    }
    BT_UNROLL_8
    for (int c = 0; c < q_rows; c++) {
        BT_UNROLL
        for (int v = 0; v < vectors; v++)
            sums[v][c] = end_sum(acc[v][c], offset[c < count ? c : count - 1][g]);
    }
}

/* total += sum * scale, of the rows of a block, for a token of one digit. */
BT_ALWAYS_INLINE void add_scaled(float *total, words sums[VECTORS][MOST_TOKENS], int c, float q_scale,
                                 const float *scale, const int vectors) {
    BT_UNROLL
    for (int v = 0; v < vectors; v++) {
        const floats factor = multiply(splat(&q_scale), load(scale + LANES * v));
        const floats product = multiply(to_floats(sums[v][c]), factor);
        store(total + LANES * v, add(load(total + LANES * v), product));
    }
}

/* The same of `digits` digits, from the sums of its rows of q. */
BT_ALWAYS_INLINE void add_scaled_digits(double *total, const int32_t (*sums)[ROWS], int digits, double q_step,
                                        const float *scale, const int vectors) {
    for (int r = 0; r < vectors * LANES; r += 4) {
        __m256d dot = _mm256_setzero_pd();
        for (int d = digits - 1; d >= 0; d--)
            dot = bt_join_digit(dot, _mm_load_si128((const __m128i *)(sums[d] + r)));
        const __m256d scaled = _mm256_mul_pd(dot, _mm256_set1_pd(q_step));
        const __m256d product = _mm256_mul_pd(scaled, _mm256_cvtps_pd(_mm_load_ps(scale + r)));
        _mm256_store_pd(total + r, _mm256_add_pd(_mm256_load_pd(total + r), product));
    }
}

/* One group of a block of rows of w for `tokens` tokens, as many as q_rows rows of q hold. */
BT_ALWAYS_INLINE void add_group(const bt_ternary_linear_w2a8 *p, group_totals *totals, const group_span *s, int g,
                                const short_rows *rows, bt_tile t, int64_t token, int tokens, const int vectors,
                                const int q_rows) {
    const int64_t column = rows->first - t.n0, first = token - t.m0;
    words sums[VECTORS][MOST_TOKENS];
    group_sums(sums, s, g, rows, p->q + p->digits * token * p->ldq + s->begin, p->ldq, s->offset + p->digits * first,
               p->digits * tokens, vectors, q_rows);
    if (p->digits == 1) {
        BT_UNROLL_8
        for (int c = 0; c < q_rows; c++)
            if (c < tokens)
                add_scaled(totals->one[first + c] + column, sums, c, p->q_scale[token + c], s->scale[g], vectors);
        return;
    }
    _Alignas(64) int32_t rows_of_q[MOST_TOKENS][ROWS];
    BT_UNROLL_8
    for (int c = 0; c < q_rows; c++) {
        BT_UNROLL
        for (int v = 0; v < vectors; v++)
            store_words(rows_of_q[c] + LANES * v, sums[v][c]);
    }
    for (int c = 0; c < tokens; c++)
        add_scaled_digits(totals->wide[first + c] + column, (const int32_t (*)[ROWS])rows_of_q + c * p->digits,
                          p->digits, p->q_step[token + c], s->scale[g], vectors);
}

/* All groups of a span for a block of rows, and all tokens of a tile. */
BT_ALWAYS_INLINE void add_groups(const bt_ternary_linear_w2a8 *p, group_totals *totals, const group_span *s,
                                 const short_rows *rows, bt_tile t, const int vectors) {
    const int per_pass = MOST_TOKENS / p->digits;
    for (int g = 0; g < s->groups; g++)
        for (int64_t token = t.m0; token < t.m1; token += per_pass) {
            const int tokens = t.m1 - token < per_pass ? (int)(t.m1 - token) : per_pass;
            if ((int)MOST_TOKENS > LEAST_Q && tokens * p->digits > LEAST_Q)
                add_group(p, totals, s, g, rows, t, token, tokens, vectors, MOST_TOKENS);
            else
                add_group(p, totals, s, g, rows, t, token, tokens, vectors, LEAST_Q);
        }
}

static __attribute__((noinline)) void add_groups_1(const bt_ternary_linear_w2a8 *p, group_totals *totals,
                                                   const group_span *s, const short_rows *rows, bt_tile t) {
    add_groups(p, totals, s, rows, t, 1);
}

static __attribute__((noinline)) void add_groups_2(const bt_ternary_linear_w2a8 *p, group_totals *totals,
                                                   const group_span *s, const short_rows *rows, bt_tile t) {
    add_groups(p, totals, s, rows, t, 2);
}

static void finish_totals(const bt_ternary_linear_w2a8 *p, const group_totals *totals, const short_rows *rows,
                          bt_tile t) {
    _Alignas(64) float out[ROWS];
    for (int64_t token = t.m0; token < t.m1; token++) {
        for (int r = 0; r < rows->lanes; r++) {
            const int64_t column = rows->first - t.n0 + r, c = token - t.m0;
            out[r] = (p->digits == 1 ? totals->one[c][column] : (float)totals->wide[c][column]) + rows->bias[r];
        }
        store_rows(rows, p->y, p->y_type, token * p->ldy + rows->first, out);
    }
}

static bt_status group_tiles(const bt_ternary_linear_w2a8 *p, int64_t tile_begin, int64_t tile_end) {
    short_rows rows;
    group_totals totals;
    group_span s = {.group = p->group};
    for (int64_t index = tile_begin; index < tile_end; index++) {
        const bt_tile t = bt_tile_at(p->m, p->n, index);
        memset(&totals, 0, (size_t)(t.m1 - t.m0) * BT_TILE_N * (p->digits == 1 ? sizeof(float) : sizeof(double)));
        for (s.begin = 0; s.begin < p->k; s.begin = s.end) {
            s.end = p->k - s.begin < SPAN ? p->k : s.begin + SPAN;
            s.groups = (int)((s.end - s.begin) / p->group);
            find_offsets(&s, p->q + p->digits * t.m0 * p->ldq + s.begin, p->ldq, (int)(p->digits * (t.m1 - t.m0)));
            for (int64_t row = t.n0; row < t.n1; row += ROWS) {
                BEGIN_ROWS(&rows, p, row, t.n1);
                gather_words(&rows, s.begin, s.end);
                to_codes_plus_two(&rows, s.end - s.begin);
                gather_scales(s.scale[0], ROWS, p, row, rows.count, rows.lanes, s.begin / p->group, s.groups);
                (rows.lanes > LANES ? add_groups_2 : add_groups_1)(p, &totals, &s, &rows, t);
                if (s.end == p->k)
                    finish_totals(p, &totals, &rows, t);
            }
        }
    }
    return BT_OK;
}

#endif
