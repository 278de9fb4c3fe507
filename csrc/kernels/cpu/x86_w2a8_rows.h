/* ternary_linear_w2a8 with rows of w in the lanes; see x86_lane_rows.h. The sums are exact, so their order is free, and
 * long rows that end with a unit in part are cut into pieces.
 *
 *   sum (code + 2) q - 2 sum q = sum code q        code + 2: low bit lo | hi, high bit not hi
 *
 * Bits 2 p + 1 .. 2 p of the bytes of a word are columns p, 4 + p, 8 + p, 12 + p of its 16, and in plane p their
 * activations lie side by side: a step is a mask and a shift a vector, and a product of four bytes a lane for each
 * vector and row of q.
 *
 * Before it a variant defines COLUMN_COST, the bt_lane_cost of its columns in lanes; after it, dot_u8_i8(). */
#ifndef BT_CPU_X86_W2A8_ROWS_H
#define BT_CPU_X86_W2A8_ROWS_H

#if !defined(COLUMN_COST)
#error "define COLUMN_COST, what a product costs with columns of w in the lanes"
#endif

#include "../act_quantize.h"
#include "../ternary_linear_w2a8.h"
#include "x86_four_rows.h"
#include "x86_lane_rows.h"

enum { PLANES = 4, OFFSET = 2, LEAST_Q = 4 };

/* acc + the four products u8 * s8 of each lane: the variant's. */
BT_ALWAYS_INLINE words dot_u8_i8(words acc, words u, words q);

static int lanes_are_rows(const bt_ternary_linear_w2a8 *p) {
    static const bt_lane_cost columns = COLUMN_COST;
    return p->group == p->k && p->k > 0 && bt_rows_fit_lanes(p->digits * p->m, p->n, p->k, &columns);
}

/* sums[i][r]: row i of q of a tile with row r. */
typedef int32_t short_sums[BT_TILE_M * BT_MAX_DIGITS][ROWS];

static void to_codes_plus_two(short_rows *rows, int64_t columns) {
    uint32_t *const word = rows->words;
    for (int64_t i = 0; i < bt_div_up(columns, STEPS) * ROWS; i++) {
        const uint32_t either = word[i] | word[i] >> 1;
        word[i] = (either & 0x55555555u) | (~word[i] & 0xaaaaaaaau);
    }
}

/* Adds the products of `columns` columns with rows of q from `q` on, past the last of which it stands in. */
BT_ALWAYS_INLINE void add_products(int32_t (*sums)[ROWS], const short_rows *rows, const int8_t *q, int64_t ldq,
                                   int count, int64_t columns, const int vectors, const int q_rows) {
    words acc[VECTORS][MOST_TOKENS];
    const int8_t *x[MOST_TOKENS];
    BT_UNROLL_8
    for (int c = 0; c < q_rows; c++) {
        const int row = c < count ? c : count - 1;
        x[c] = q + row * ldq;
        BT_UNROLL
        for (int v = 0; v < vectors; v++)
            acc[v][c] = load_words((const uint32_t *)sums[row] + LANES * v);
    }
    for (int64_t i = 0; i < bt_div_up(columns, STEPS); i++) {
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
                    acc[v][c] = dot_u8_i8(acc[v][c], u[v], quad);
            }
        }
    }
    BT_UNROLL_8
    for (int c = 0; c < q_rows; c++) {
        BT_UNROLL
        for (int v = 0; v < vectors; v++)
            if (c < count)
                store_words(sums[c] + LANES * v, acc[v][c]);
    }
}

BT_ALWAYS_INLINE void add_piece(int32_t (*sums)[ROWS], const short_rows *rows, const int8_t *q, int64_t ldq, int count,
                                int64_t columns, const int vectors) {
    int c = 0;
    for (; count - c > LEAST_Q; c += MOST_TOKENS)
        add_products(sums + c, rows, q + c * ldq, ldq, count - c < MOST_TOKENS ? count - c : MOST_TOKENS, columns,
                     vectors, MOST_TOKENS);
    if (c < count)
        add_products(sums + c, rows, q + c * ldq, ldq, count - c, columns, vectors, LEAST_Q);
}

static __attribute__((noinline)) void one_vector(int32_t (*sums)[ROWS], const short_rows *rows, const int8_t *q,
                                                 int64_t ldq, int count, int64_t columns) {
    add_piece(sums, rows, q, ldq, count, columns, 1);
}

static __attribute__((noinline)) void two_vectors(int32_t (*sums)[ROWS], const short_rows *rows, const int8_t *q,
                                                  int64_t ldq, int count, int64_t columns) {
    add_piece(sums, rows, q, ldq, count, columns, 2);
}

/* The outputs of a token from the sums of its rows of q, eight at a time. */
BT_ALWAYS_INLINE void scale_token(const bt_ternary_linear_w2a8 *p, const short_rows *rows, int64_t token,
                                  const int32_t (*sums)[ROWS], const int digits) {
    _Alignas(64) float out[ROWS];
    for (int r = 0; r < rows->count; r += 8) {
        __m256 value;
        if (digits == 1) {
            const __m256 scale = _mm256_mul_ps(_mm256_set1_ps(p->q_scale[token]), _mm256_load_ps(rows->scale + r));
            value = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_load_si256((const __m256i *)(sums[0] + r))), scale);
        } else {
            __m128 half[2];
            for (int h = 0; h < 2; h++) {
                __m256d dot = _mm256_setzero_pd();
                for (int d = digits - 1; d >= 0; d--)
                    dot = bt_join_digit(dot, _mm_load_si128((const __m128i *)(sums[d] + r + 4 * h)));
                const __m256d scale = _mm256_cvtps_pd(_mm_load_ps(rows->scale + r + 4 * h));
                half[h] = _mm256_cvtpd_ps(_mm256_mul_pd(_mm256_mul_pd(dot, _mm256_set1_pd(p->q_step[token])), scale));
            }
            value = _mm256_insertf128_ps(_mm256_castps128_ps256(half[0]), half[1], 1);
        }
        value = _mm256_add_ps(_mm256_setzero_ps(), value); /* as a sum that begins with +0 */
        _mm256_store_ps(out + r, _mm256_add_ps(value, _mm256_load_ps(rows->bias + r)));
    }
    store_rows(rows, p->y, p->y_type, token * p->ldy + rows->first, out);
}

static void scale_tokens(const bt_ternary_linear_w2a8 *p, const short_rows *rows, bt_tile t,
                         const int32_t (*sums)[ROWS]) {
    if (p->digits == 1)
        for (int64_t token = t.m0; token < t.m1; token++)
            scale_token(p, rows, token, sums + (token - t.m0), 1);
    else
        for (int64_t token = t.m0; token < t.m1; token++)
            scale_token(p, rows, token, sums + p->digits * (token - t.m0), p->digits);
}

static bt_status short_tiles(const bt_ternary_linear_w2a8 *p, int64_t tile_begin, int64_t tile_end) {
    short_rows rows;
    _Alignas(64) short_sums sums;
    for (int64_t index = tile_begin; index < tile_end; index++) {
        const bt_tile t = bt_tile_at(p->m, p->n, index);
        const int count = (int)(p->digits * (t.m1 - t.m0));
        const int64_t first = p->digits * t.m0;
        for (int64_t row = t.n0; row < t.n1; row += ROWS) {
            BEGIN_ROWS(&rows, p, row, t.n1);
            for (int c = 0; c < count; c++)
                for (int r = 0; r < rows.lanes; r++)
                    sums[c][r] = -OFFSET * p->q_sum[first + c];
            for (int64_t begin = 0; begin < p->k; begin += SHORT_K) {
                const int64_t end = p->k - begin < SHORT_K ? p->k : begin + SHORT_K;
                const int8_t *q = p->q + first * p->ldq + begin;
                gather_words(&rows, begin, end);
                to_codes_plus_two(&rows, end - begin);
                (rows.lanes > LANES ? two_vectors : one_vector)(sums, &rows, q, p->ldq, count, end - begin);
            }
            scale_tokens(p, &rows, t, (const int32_t (*)[ROWS])sums);
        }
    }
    return BT_OK;
}

#endif
