/* Int8 products with columns of w in the lanes: the walk over tiles in blocks of 4 rows x 1..4 rows of q, and what
 * follows a sum over columns. How weights are stored is the variant's business. */
#ifndef BT_CPU_X86_W2A8_BLOCK_H
#define BT_CPU_X86_W2A8_BLOCK_H

#include "../act_quantize.h"
#include "../ternary_linear_w2a8.h"
#include "x86_four_rows.h"

/* What a variant finds over a span of columns, for rows of q one after the other: the dot products with four rows of w.
 * Its weights are code + `offset`, and offset times sum q is taken off again. That is known for a row of q, `q_sum`;
 * where a group is less than all columns, the variant is asked to `remove_offset` itself. A span of several groups is
 * `unit` columns or the last of them, and is wanted `in_parts` of 64 columns; any other is part 0. */
typedef struct bt_span_dots {
    _Alignas(64) __m128i part[BT_TOKENS][4];
} bt_span_dots;
typedef void bt_dot_span(bt_span_dots *dots, const bt_rows *rows, const int8_t *q, int64_t ldq, int64_t begin,
                         int64_t end, int remove_offset, int in_parts, const int q_rows);
typedef struct bt_w2a8_variant {
    int unit;   /* 256 or 128 */
    int offset; /* 0: nothing to remove */
    bt_dot_span *dot_span;
} bt_w2a8_variant;

/* The dot products of a group, `parts` (1 or 2) from `part` on, with row c of q. */
BT_ALWAYS_INLINE __m128i bt_group_dots(const bt_span_dots *dots, int c, int64_t part, int parts, int32_t offset) {
    const __m128i first = dots->part[c][part];
    const __m128i sum = parts == 1 ? first : _mm_add_epi32(first, dots->part[c][part + 1]);
    return _mm_sub_epi32(sum, _mm_set1_epi32(offset));
}

BT_ALWAYS_INLINE __m128 bt_scaled_dot(__m128i dot, float q_scale, __m128 scale) {
    return _mm_mul_ps(_mm_cvtepi32_ps(dot), _mm_mul_ps(_mm_set1_ps(q_scale), scale));
}

/* The digits of a token, which begin with row c of q, joined: exact, and so is every order of it. */
BT_ALWAYS_INLINE __m256d bt_joined_dots(const bt_span_dots *dots, int c, int64_t part, int parts, const int32_t *q_sum,
                                        int32_t offset, const int digits) {
    __m256d sum = _mm256_setzero_pd();
    for (int d = digits - 1; d >= 0; d--) {
        const __m128i dot = bt_group_dots(dots, c + d, part, parts, q_sum ? offset * q_sum[c + d] : 0);
        sum = bt_join_digit(sum, dot);
    }
    return sum;
}

/* Four rows by `tokens` tokens of `digits` rows of q each. `whole`: all columns are one group. */
BT_ALWAYS_INLINE void bt_w2a8_block(const bt_ternary_linear_w2a8 *p, const bt_rows *rows, int64_t token,
                                    const bt_w2a8_variant v, const int whole, const int digits, const int tokens) {
    const int8_t *q = p->q + digits * token * p->ldq;
    const int64_t span = whole ? p->k : bt_span(p->k, p->group, v.unit);
    const int in_parts = !whole && span != p->group, parts = in_parts ? (int)(p->group / 64) : 1;
    const int32_t *q_sum = whole ? p->q_sum + digits * token : NULL;
    __m128 sum[BT_TOKENS];
    __m256d wide_sum[BT_TOKENS];
    int64_t g = 0;
    for (int c = 0; c < tokens; c++) {
        sum[c] = _mm_setzero_ps();
        wide_sum[c] = _mm256_setzero_pd();
    }
    for (int64_t begin = 0; begin < p->k; begin += span) {
        const int64_t end = !whole && begin + span < p->k ? begin + span : p->k;
        bt_span_dots dots;
        v.dot_span(&dots, rows, q, p->ldq, begin, end, !whole, in_parts, digits * tokens);
        int64_t part = 0;
        for (int64_t at = begin; at < end; at += whole ? p->k : p->group, part += parts, g++) {
            const __m128 scales = bt_scales(rows, g);
            for (int c = 0; c < tokens; c++) {
                if (digits == 1) {
                    const __m128i dot = bt_group_dots(&dots, c, part, parts, whole ? v.offset * q_sum[c] : 0);
                    sum[c] = _mm_add_ps(sum[c], bt_scaled_dot(dot, p->q_scale[token + c], scales));
                } else {
                    const __m256d dot = bt_joined_dots(&dots, digits * c, part, parts, q_sum, v.offset, digits);
                    const __m256d scaled = _mm256_mul_pd(dot, _mm256_set1_pd(p->q_step[token + c]));
                    wide_sum[c] = _mm256_add_pd(wide_sum[c], _mm256_mul_pd(scaled, _mm256_cvtps_pd(scales)));
                }
            }
            if (whole)
                break;
        }
        if (whole)
            break;
    }
    for (int c = 0; c < tokens && digits > 1; c++)
        sum[c] = _mm256_cvtpd_ps(wide_sum[c]);
    const bt_output out = {p->y, p->bias, p->ldy, p->y_type, p->bias_type};
    bt_finish_block(&out, token, sum, rows, tokens);
}

/* Blocks of `digits` digits, of at most four rows of q. Each case is a function of its own in a variant, not inlined:
 * the loops of all are more than gcc 12 has registers for, but each wants to be inlined into the walk over blocks,
 * whose end then overlaps with the next block (8 % of a row of 2560 columns). */
BT_ALWAYS_INLINE void bt_w2a8_tiles(const bt_ternary_linear_w2a8 *p, int64_t tile_begin, int64_t tile_end,
                                    const bt_w2a8_variant v, const int whole, const int digits) {
    if (digits == 1)
        BT_EACH_BLOCK(p, tile_begin, tile_end, BT_TOKENS,
                      BT_BY_COUNT(count, bt_w2a8_block, p, &rows, token, v, whole, 1))
    else if (digits == 2)
        BT_EACH_BLOCK(p, tile_begin, tile_end, 2, if (count == 1) bt_w2a8_block(p, &rows, token, v, whole, 2, 1);
                      else bt_w2a8_block(p, &rows, token, v, whole, 2, 2);)
    else
        BT_EACH_BLOCK(p, tile_begin, tile_end, 1, bt_w2a8_block(p, &rows, token, v, whole, 3, 1);)
}

#endif
