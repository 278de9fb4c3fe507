/* What the AVX2 and AVX-512 files of ternary_linear_packed and of ternary_linear_w2a8 share: the walk over tiles in
 * blocks of 4 rows x 1..4 tokens, and what follows a sum over columns. A variant brings `sum_span`, the lanes of
 * columns [begin, end), where begin is a multiple of its unit. */
#ifndef BT_CPU_X86_LINEAR_H
#define BT_CPU_X86_LINEAR_H

#include "../act_quantize.h"
#include "../ternary_linear_packed.h"
#include "../ternary_linear_w2a8.h"
#include "x86.h"

/* run(p, &rows, token, tokens, ...) for the blocks of the tiles [begin, end); the number of tokens is a constant. */
#define BT_RUN_TILES(p, begin, end, run, ...)                                                                          \
    for (int64_t index = (begin); index < (end); index++) {                                                            \
        const bt_tile t = bt_tile_at((p)->m, (p)->n, index);                                                           \
        for (int64_t token = t.m0; token < t.m1; token += BT_TOKENS)                                                   \
            for (int64_t row = t.n0; row < t.n1; row += BT_ROWS) {                                                     \
                const bt_rows rows = bt_rows_at((p)->w, (p)->ldw, (p)->scale, (p)->lds, row, t.n1);                    \
                switch (t.m1 - token) {                                                                                \
                case 1:                                                                                                \
                    run(p, &rows, token, 1, __VA_ARGS__);                                                              \
                    break;                                                                                             \
                case 2:                                                                                                \
                    run(p, &rows, token, 2, __VA_ARGS__);                                                              \
                    break;                                                                                             \
                case 3:                                                                                                \
                    run(p, &rows, token, 3, __VA_ARGS__);                                                              \
                    break;                                                                                             \
                default:                                                                                               \
                    run(p, &rows, token, 4, __VA_ARGS__);                                                              \
                }                                                                                                      \
            }                                                                                                          \
    }

typedef float bt_lanes_f32[BT_TOKENS][BT_ROWS][16];
typedef void bt_sum_span_f32(bt_lanes_f32 lanes, const bt_rows *rows, const void *xp, int64_t ldxp, int64_t begin,
                             int64_t end, const int tokens);

BT_ALWAYS_INLINE void bt_packed_block(const bt_ternary_linear_packed *p, const bt_rows *rows, int64_t token,
                                      const int tokens, bt_sum_span_f32 *sum_span) {
    const void *xp = bt_packed_xp_row(p, token);
    const int64_t span = bt_span(p->k, p->group, BT_BLOCK);
    const int quarters = span == p->group ? 4 : (int)(p->group / 64);
    __m128 sum[BT_TOKENS] = {_mm_setzero_ps(), _mm_setzero_ps(), _mm_setzero_ps(), _mm_setzero_ps()};
    int64_t g = 0;
    for (int64_t begin = 0; begin < p->k; begin += span) {
        const int64_t end = begin + span < p->k ? begin + span : p->k;
        bt_lanes_f32 lanes;
        sum_span(lanes, rows, xp, p->ldxp, begin, end, tokens);
        for (int64_t at = begin, lane = 0; at < end; at += p->group, lane += 4 * quarters, g++) {
            const __m128 scales = bt_scales(rows, g);
            for (int c = 0; c < tokens; c++)
                sum[c] = _mm_add_ps(sum[c], _mm_mul_ps(bt_tree(&lanes[c][0][lane], 16, quarters), scales));
        }
    }
    for (int c = 0; c < tokens; c++)
        bt_finish4(p->y, p->y_type, (token + c) * p->ldy + rows->first, sum[c], p->bias, p->bias_type, rows);
}

BT_ALWAYS_INLINE bt_status bt_packed_tiles(const bt_ternary_linear_packed *p, int64_t tile_begin, int64_t tile_end,
                                           int xp_type, bt_sum_span_f32 *sum_span) {
    BT_ASSERT(p->xp_type == xp_type && p->ldxp % BT_FLOAT_BLOCK == 0);
    (void)xp_type;
    if (!bt_group_fits(p->k, p->group))
        return bt_ternary_linear_packed_scalar(p, tile_begin, tile_end);
    BT_RUN_TILES(p, tile_begin, tile_end, bt_packed_block, sum_span)
    return BT_OK;
}

/* The lanes of a w2a8 product hold code + `offset`: offset times sum q is taken off again. That is known for a token,
 * `q_sum`; where a group is less than all columns, sum_span is asked to `remove_offset` itself.
 *
 *   lanes   row after row of `count` lanes, token after token; 16 lanes suffice for every variant */
typedef int32_t bt_lanes_i32[BT_TOKENS * BT_ROWS * 16];
typedef void bt_sum_span_i32(bt_lanes_i32 lanes, const bt_rows *rows, const int8_t *q, int64_t ldq, int64_t begin,
                             int64_t end, int remove_offset, const int tokens);
typedef struct bt_w2a8_variant {
    int count;  /* lanes of a row: BT_BLOCK columns if 16, half of that if 8 */
    int offset; /* 0: nothing to remove */
} bt_w2a8_variant;

BT_ALWAYS_INLINE __m128 bt_scaled_dot(__m128i dot, float q_scale, __m128 scale) {
    return _mm_mul_ps(_mm_cvtepi32_ps(dot), _mm_mul_ps(_mm_set1_ps(q_scale), scale));
}

BT_ALWAYS_INLINE void bt_w2a8_block(const bt_ternary_linear_w2a8 *p, const bt_rows *rows, int64_t token,
                                    const int tokens, const bt_w2a8_variant v, bt_sum_span_i32 *sum_span) {
    const int8_t *q = p->q + token * p->ldq;
    const int64_t span = bt_span(p->k, p->group, 16 * v.count);
    const int quarters = span == p->group ? v.count / 4 : (int)(p->group / 64), whole = p->group == p->k;
    __m128 sum[BT_TOKENS] = {_mm_setzero_ps(), _mm_setzero_ps(), _mm_setzero_ps(), _mm_setzero_ps()};
    int64_t g = 0;
    for (int64_t begin = 0; begin < p->k; begin += span) {
        const int64_t end = begin + span < p->k ? begin + span : p->k;
        bt_lanes_i32 lanes;
        sum_span(lanes, rows, q, p->ldq, begin, end, !whole, tokens);
        for (int64_t at = begin, lane = 0; at < end; at += p->group, lane += 4 * quarters, g++) {
            const __m128 scales = bt_scales(rows, g);
            for (int c = 0; c < tokens; c++) {
                const __m128i bias = _mm_set1_epi32(whole ? v.offset * p->q_sum[token + c] : 0);
                const __m128i sums = bt_sums(&lanes[BT_ROWS * v.count * c + lane], v.count, quarters);
                const __m128i dot = _mm_sub_epi32(sums, bias);
                sum[c] = _mm_add_ps(sum[c], bt_scaled_dot(dot, p->q_scale[token + c], scales));
            }
        }
    }
    for (int c = 0; c < tokens; c++)
        bt_finish4(p->y, p->y_type, (token + c) * p->ldy + rows->first, sum[c], p->bias, p->bias_type, rows);
}

BT_ALWAYS_INLINE bt_status bt_w2a8_tiles(const bt_ternary_linear_w2a8 *p, int64_t tile_begin, int64_t tile_end,
                                         const bt_w2a8_variant v, bt_sum_span_i32 *sum_span) {
    BT_ASSERT(p->ldq % BT_ACT_BLOCK == 0 && p->k <= BT_W2A8_MAX_K);
    if (!bt_group_fits(p->k, p->group))
        return bt_ternary_linear_w2a8_scalar(p, tile_begin, tile_end);
    BT_RUN_TILES(p, tile_begin, tile_end, bt_w2a8_block, v, sum_span)
    return BT_OK;
}

#endif
