/* ternary_linear_w2a8 on x86: the kernel that a variant is made into, with columns or with rows of w in the lanes, and
 * with small scale groups. */
#ifndef BT_CPU_X86_W2A8_COLUMNS_H
#define BT_CPU_X86_W2A8_COLUMNS_H

#include "x86_w2a8_block.h"
#include "x86_w2a8_few.h"

/* bt_ternary_linear_w2a8_<isa> of a bt_w2a8_variant, or, where that costs less, with rows of w in the lanes. */
#define BT_W2A8_CASE(name, variant, whole, digits)                                                                     \
    static __attribute__((noinline)) void name(const bt_ternary_linear_w2a8 *p, int64_t begin, int64_t end) {          \
        bt_w2a8_tiles(p, begin, end, variant, whole, digits);                                                          \
    }
#define BT_DEFINE_W2A8(isa, variant)                                                                                   \
    BT_W2A8_CASE(whole_1, variant, 1, 1)                                                                               \
    BT_W2A8_CASE(whole_2, variant, 1, 2)                                                                               \
    BT_W2A8_CASE(whole_3, variant, 1, 3)                                                                               \
    BT_W2A8_CASE(groups_1, variant, 0, 1)                                                                              \
    BT_W2A8_CASE(groups_2, variant, 0, 2)                                                                              \
    BT_W2A8_CASE(groups_3, variant, 0, 3)                                                                              \
    bt_status bt_ternary_linear_w2a8_##isa(const bt_ternary_linear_w2a8 *p, int64_t tile_begin, int64_t tile_end) {    \
        BT_ASSERT(p->ldq % BT_ACT_BLOCK == 0 && p->k <= BT_W2A8_MAX_K && p->digits >= 1 && p->digits <= 3);            \
        if (!bt_group_fits(p->k, p->group))                                                                            \
            return bt_ternary_linear_w2a8_scalar(p, tile_begin, tile_end);                                             \
        if (lanes_are_rows(p))                                                                                         \
            return short_tiles(p, tile_begin, tile_end);                                                               \
        if (p->group < p->k && p->group <= BT_BLOCK && p->digits * p->m <= FEW_ROWS_OF_Q)                              \
            return few_tiles(p, tile_begin, tile_end);                                                                 \
        if (p->group < p->k && p->group <= MOST_GROUP)                                                                 \
            return group_tiles(p, tile_begin, tile_end);                                                               \
        if (p->group == p->k)                                                                                          \
            p->digits == 1   ? whole_1(p, tile_begin, tile_end)                                                        \
            : p->digits == 2 ? whole_2(p, tile_begin, tile_end)                                                        \
                             : whole_3(p, tile_begin, tile_end);                                                       \
        else                                                                                                           \
            p->digits == 1   ? groups_1(p, tile_begin, tile_end)                                                       \
            : p->digits == 2 ? groups_2(p, tile_begin, tile_end)                                                       \
                             : groups_3(p, tile_begin, tile_end);                                                      \
        return BT_OK;                                                                                                  \
    }

#endif
