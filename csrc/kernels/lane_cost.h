/* Which way a product on an x86 CPU goes: with columns of w in the lanes of a vector, or with rows of w, see
 * cpu/x86_lane_rows.h. */
#ifndef BT_LANE_COST_H
#define BT_LANE_COST_H

#include "bt_common.h"

/* What a product costs with columns in the lanes, by measurements on a Zen 4: its rows are padded to whole units and
 * end with a reduction, and a last unit in part needs a copy; both are worth some columns more. */
typedef struct bt_lane_cost {
    int64_t lanes;
    int64_t unit, reduction, part;
    int64_t twentieths; /* of what a column costs with rows in the lanes */
    int64_t prepare;    /* of the activations, which is not needed with rows in the lanes, in rows of w */
    int64_t gather;     /* and what gathering words costs there, in rows of activations a tile */
} bt_lane_cost;

/* Whether it costs less with rows in the lanes, where these are padded to a vector and m rows of activations to fours.
 */
static inline int bt_rows_fit_lanes(int64_t m, int64_t n, int64_t k, const bt_lane_cost *other) {
    const int64_t tokens = bt_div_up(m, 4) * 4 + other->gather * bt_div_up(m, BT_TILE_M);
    const int64_t rows = bt_div_up(n, other->lanes) * other->lanes, other_rows = bt_div_up(n, 4) * 4 + other->prepare;
    const int64_t other_k = bt_div_up(k, other->unit) * other->unit + other->reduction;
    const int64_t paid_k = other_k + (k % other->unit ? other->part : 0);
    return 20.0 * (double)tokens * (double)rows * (double)k <
           (double)(other->twentieths * m) * (double)other_rows * (double)paid_k; /* int64 would not hold it */
}

#endif
