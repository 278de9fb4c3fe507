/* ternary_linear_packed with columns of w in the lanes: the walk over tiles in blocks of 4 rows x 1..4 tokens, and what
 * follows a sum over columns. A variant gives bt_packed_tiles() its `sum_span`, which makes the lanes of columns
 * [begin, end), where begin is a multiple of 256. */
#ifndef BT_CPU_X86_PACKED_COLUMNS_H
#define BT_CPU_X86_PACKED_COLUMNS_H

#include "../ternary_linear_packed.h"
#include "x86_four_rows.h"

typedef float bt_lanes_f32[BT_TOKENS][BT_ROWS][16];
typedef void bt_sum_span_f32(bt_lanes_f32 lanes, const bt_rows *rows, const void *xp, int64_t ldxp, int64_t begin,
                             int64_t end, const int tokens);

BT_ALWAYS_INLINE void bt_packed_block(const bt_ternary_linear_packed *p, const bt_rows *rows, int64_t token,
                                      bt_sum_span_f32 *sum_span, const int tokens) {
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
    const bt_output out = {p->y, p->bias, p->ldy, p->y_type, p->bias_type};
    bt_finish_block(&out, token, sum, rows, tokens);
}

BT_ALWAYS_INLINE bt_status bt_packed_tiles(const bt_ternary_linear_packed *p, int64_t tile_begin, int64_t tile_end,
                                           int xp_type, bt_sum_span_f32 *sum_span) {
    BT_ASSERT(p->xp_type == xp_type && p->ldxp % BT_FLOAT_BLOCK == 0);
    (void)xp_type;
    if (!bt_group_fits(p->k, p->group))
        return bt_ternary_linear_packed_scalar(p, tile_begin, tile_end);
    BT_EACH_BLOCK(p, tile_begin, tile_end, BT_TOKENS, BT_BY_COUNT(count, bt_packed_block, p, &rows, token, sum_span))
    return BT_OK;
}

#endif
