/* ternary_linear_w2a8 with small scale groups, for a few rows of q: columns of w in the lanes, four rows at once.
 *
 * Every 64 columns end with a sum over lanes, which is left as it is: the sums of all groups of some rows are written
 * down first, and then scaled and added with rows in the lanes. What the offset of codes adds to a unit of columns, the
 * same for every row, is what its sums begin with.
 *
 * A variant defines the two functions that are declared here. */
#ifndef BT_CPU_X86_W2A8_FEW_H
#define BT_CPU_X86_W2A8_FEW_H

#include "x86_w2a8_groups.h"

/* Of up to FEW_ROWS_OF_Q rows, FEW at once: the other way pads them to eights. */
enum { FEW_ROWS_OF_Q = 6, FEW = 4, FEW_ROWS = 16, FEW_SPAN = 8192, UNIT = 16 * LANES, PARTS = UNIT / QUARTER };

/* What the lanes of a unit of q begin with. */
BT_ALWAYS_INLINE words unit_offset(const int8_t *q);

/* parts[c]: for each 64 columns of the unit, the dot products of row c of q with four rows of w, from byte
 * `at` of each. */
BT_ALWAYS_INLINE void unit_parts(words parts[FEW], const uint8_t *const w[BT_ROWS], int64_t at, const int8_t *q,
                                 int64_t ldq, const words offset[FEW], const int q_rows);

typedef struct few_span {
    _Alignas(64) int32_t dots[FEW][FEW_SPAN / QUARTER][FEW_ROWS];
    _Alignas(64) float scale[FEW_SPAN / QUARTER][FEW_ROWS];
    words offset[FEW_SPAN / UNIT][FEW];
    int64_t begin, end;
} few_span;

BT_ALWAYS_INLINE int64_t unit_at(int64_t unit) {
    const int64_t column = UNIT * unit;
    return (column & -BT_BLOCK) + column % BT_BLOCK / PLANES;
}

BT_ALWAYS_INLINE void few_unit(few_span *s, const uint8_t *const w[BT_ROWS], int64_t at, int64_t unit, int column,
                               const int8_t *q, int64_t ldq, const int q_rows) {
    words parts[FEW];
    unit_parts(parts, w, at, q + unit_at(unit), ldq, s->offset[unit], q_rows);
    BT_UNROLL
    for (int c = 0; c < q_rows; c++) {
        BT_UNROLL
        for (int i = 0; i < PARTS; i++)
            _mm_store_si128((__m128i *)(s->dots[c][PARTS * unit + i] + column), quarter(parts[c], i));
    }
}

/* The dot products of a span with four rows of w, the last of `count` standing in, at `column` of the table. */
BT_ALWAYS_INLINE void few_dots(few_span *s, const uint8_t *first, int64_t ldw, int count, int column, const int8_t *q,
                               int64_t ldq, const int q_rows) {
    const int64_t units = (s->end - s->begin) / UNIT, rest = (s->end - s->begin) % UNIT / 4;
    const uint8_t *w[BT_ROWS] = {first};
    for (int r = 1; r < BT_ROWS; r++)
        w[r] = w[r - 1] + (r < count ? ldw : 0);
    for (int64_t unit = 0; unit < units; unit++) {
        BT_UNROLL
        for (int r = 0; r < BT_ROWS; r += BT_BLOCK / UNIT)
            bt_prefetch(w, (BT_ROWS * unit + r) * (UNIT / 4));
        few_unit(s, w, UNIT / 4 * unit, unit, column, q, ldq, q_rows);
    }
    if (rest) {
        uint8_t tail[BT_ROWS][UNIT / 4];
        const uint8_t *const copy[BT_ROWS] = {tail[0], tail[1], tail[2], tail[3]};
        bt_copy_tail(tail[0], UNIT / 4, w, UNIT / 4 * units, rest);
        few_unit(s, copy, 0, units, column, q, ldq, q_rows);
    }
}

#define DEFINE_FEW_DOTS(q_rows)                                                                                        \
    static __attribute__((noinline)) void few_dots_##q_rows(few_span *s, const uint8_t *first, int64_t ldw, int count, \
                                                            int column, const int8_t *q, int64_t ldq) {                \
        few_dots(s, first, ldw, count, column, q, ldq, q_rows);                                                        \
    }
DEFINE_FEW_DOTS(1)
DEFINE_FEW_DOTS(2)
DEFINE_FEW_DOTS(3)
DEFINE_FEW_DOTS(4)

/* Adds the groups of a span to the totals of a token of one digit, for FEW_ROWS rows. */
BT_ALWAYS_INLINE void add_few(float *total, const few_span *s, int c, float q_scale, int64_t groups, const int parts) {
    for (int r = 0; r < FEW_ROWS; r += LANES) {
        floats sum = load(total + r);
        for (int64_t g = 0; g < groups; g++) {
            words dot = load_words((const uint32_t *)s->dots[c][parts * g] + r);
            for (int i = 1; i < parts; i++)
                dot = add_words(dot, load_words((const uint32_t *)s->dots[c][parts * g + i] + r));
            sum = add(sum, multiply(to_floats(dot), multiply(splat(&q_scale), load(s->scale[g] + r))));
        }
        store(total + r, sum);
    }
}

/* The same of a token of more digits, which begin with row c of q. */
BT_ALWAYS_INLINE void add_few_digits(double *total, const few_span *s, int c, int digits, double q_step, int64_t groups,
                                     const int parts) {
    for (int r = 0; r < FEW_ROWS; r += 4) {
        __m256d sum = _mm256_load_pd(total + r);
        for (int64_t g = 0; g < groups; g++) {
            __m256d dot = _mm256_setzero_pd();
            for (int d = digits - 1; d >= 0; d--) {
                __m128i digit = _mm_load_si128((const __m128i *)(s->dots[c + d][parts * g] + r));
                for (int i = 1; i < parts; i++)
                    digit = _mm_add_epi32(digit, _mm_load_si128((const __m128i *)(s->dots[c + d][parts * g + i] + r)));
                dot = bt_join_digit(dot, digit);
            }
            const __m256d scaled = _mm256_mul_pd(dot, _mm256_set1_pd(q_step));
            sum = _mm256_add_pd(sum, _mm256_mul_pd(scaled, _mm256_cvtps_pd(_mm_load_ps(s->scale[g] + r))));
        }
        _mm256_store_pd(total + r, sum);
    }
}

typedef struct few_totals {
    _Alignas(64) float one[FEW][BT_TILE_N];
    _Alignas(64) double wide[FEW / 2][BT_TILE_N]; /* of more digits than one */
} few_totals;

BT_ALWAYS_INLINE void add_few_token(const bt_ternary_linear_w2a8 *p, few_totals *totals, const few_span *s, int token,
                                    int64_t column, int64_t groups, const int parts) {
    if (p->digits == 1)
        add_few(totals->one[token] + column, s, token, p->q_scale[token], groups, parts);
    else
        add_few_digits(totals->wide[token] + column, s, p->digits * token, p->digits, p->q_step[token], groups, parts);
}

/* A span of columns for at most FEW_ROWS rows from `row` on. */
static void add_few_rows(const bt_ternary_linear_w2a8 *p, few_totals *totals, few_span *s, bt_tile t, int64_t row) {
    const int count = t.n1 - row < FEW_ROWS ? (int)(t.n1 - row) : FEW_ROWS;
    const int64_t groups = (s->end - s->begin) / p->group, q_rows = p->digits * p->m, column = row - t.n0;
    const int8_t *q = p->q + s->begin;
    if (count < FEW_ROWS)
        memset(s->dots, 0, sizeof s->dots);
    for (int r = 0; r < count; r += BT_ROWS) {
        const uint8_t *w = p->w + (row + r) * p->ldw + s->begin / 4;
        if (q_rows == 1)
            few_dots_1(s, w, p->ldw, count - r, r, q, p->ldq);
        else if (q_rows == 2)
            few_dots_2(s, w, p->ldw, count - r, r, q, p->ldq);
        else if (q_rows == 3)
            few_dots_3(s, w, p->ldw, count - r, r, q, p->ldq);
        else
            few_dots_4(s, w, p->ldw, count - r, r, q, p->ldq);
    }
    gather_scales(s->scale[0], FEW_ROWS, p, row, count, FEW_ROWS, s->begin / p->group, (int)groups);
    for (int c = 0; c < p->m; c++)
        if (p->group == QUARTER)
            add_few_token(p, totals, s, c, column, groups, 1);
        else if (p->group == 2 * QUARTER)
            add_few_token(p, totals, s, c, column, groups, 2);
        else
            add_few_token(p, totals, s, c, column, groups, BT_BLOCK / QUARTER);
}

static void finish_few(const bt_ternary_linear_w2a8 *p, few_totals *totals, bt_tile t) {
    for (int64_t c = 0; c < p->m && p->digits > 1; c++)
        for (int r = 0; r < BT_TILE_N; r++)
            totals->one[c][r] = (float)totals->wide[c][r];
    for (int64_t c = 0; c < p->m; c++) {
        const float *sum = totals->one[c];
        int64_t r = t.n0;
        for (; r + 4 <= t.n1; r += 4, sum += 4) {
            const __m128 bias = p->bias ? bt_load4(p->bias, p->bias_type, r) : _mm_set1_ps(-0.0f);
            bt_store4(p->y, p->y_type, c * p->ldy + r, _mm_add_ps(_mm_load_ps(sum), bias));
        }
        for (; r < t.n1; r++)
            bt_finish(p->y, p->y_type, c * p->ldy + r, *sum++, p->bias, p->bias_type, r);
    }
}

/* A tile of rows for all tokens of p, whose rows of q are FEW at most. */
static void few_tile(const bt_ternary_linear_w2a8 *p, few_span *s, bt_tile t) {
    few_totals totals;
    memset(&totals, 0, sizeof totals);
    for (s->begin = 0; s->begin < p->k; s->begin = s->end) {
        s->end = p->k - s->begin < FEW_SPAN ? p->k : s->begin + FEW_SPAN;
        for (int64_t unit = 0; unit < bt_div_up(s->end - s->begin, UNIT); unit++)
            for (int c = 0; c < p->digits * p->m; c++)
                s->offset[unit][c] = unit_offset(p->q + c * p->ldq + s->begin + unit_at(unit));
        for (int64_t row = t.n0; row < t.n1; row += FEW_ROWS)
            add_few_rows(p, &totals, s, t, row);
    }
    finish_few(p, &totals, t);
}

/* p from a token on, and `count` of them. */
static bt_ternary_linear_w2a8 some_tokens(const bt_ternary_linear_w2a8 *p, int64_t token, int64_t count) {
    bt_ternary_linear_w2a8 some = *p;
    some.m = count;
    some.q += p->digits * token * p->ldq;
    if (p->digits == 1)
        some.q_scale += token;
    else
        some.q_step += token;
    some.y = (uint8_t *)p->y + token * p->ldy * (p->y_type == BT_F32 ? 4 : 2);
    return some;
}

static bt_status few_tiles(const bt_ternary_linear_w2a8 *p, int64_t tile_begin, int64_t tile_end) {
    few_span s;
    const int64_t most = FEW / p->digits;
    for (int64_t index = tile_begin; index < tile_end; index++)
        for (int64_t token = 0; token < p->m; token += most) {
            const bt_ternary_linear_w2a8 some = some_tokens(p, token, p->m - token < most ? p->m - token : most);
            few_tile(&some, &s, bt_tile_at(p->m, p->n, index));
        }
    return BT_OK;
}

#endif
