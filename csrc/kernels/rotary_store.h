/* rotary_store: turns the heads of new tokens by their positions, and stores keys and values in a cache.
 *
 *   y[c] = cast( fl(x[c] * cos[c]) + fl(x[c +- rotated / 2] * sin[c]) )      c in [0, rotated), the other half's
 * partner
 *
 * of each head of q and k, in place; the first product is cast too, before the sum. cos and sin have the type of the
 * heads, and signs are in sin. Columns from `rotated` on stay. Turned keys, and values as they are, then go to the
 * slots of their tokens, in the type of the cache. All is fp32 and each operation rounds, so that every kernel and
 * device gives the same bits. A tile is a token; sequences are those of decode_attention, and so are slots. */
#ifndef BT_ROTARY_STORE_H
#define BT_ROTARY_STORE_H
#include "decode_attention.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef struct bt_rotary_store {
    void *heads;                            /* tokens of heads + 2 kv_heads of dim: q, k, v; ldx elements apart */
    const void *cos, *sin;                  /* tokens of `rotated`, ldcos elements apart; not read where it is 0 */
    void *k, *v;                            /* as of decode_attention */
    const bt_attention_sequence *sequences; /* whose tokens these are, in order */
    int64_t heads_q, kv_heads, dim;         /* dim up to BT_ATTENTION_MAX_DIM */
    int64_t rotated;                        /* even, up to dim */
    int64_t ldx, ldcos, ldrow, ldhead, ldslot;
    int type, kv_type; /* of heads, cos and sin; of k and v */
    void *stream;
} bt_rotary_store;

typedef bt_status bt_rotary_store_fn(const bt_rotary_store *p, int64_t tile_begin, int64_t tile_end);

#define BT_ROTARY_STORE(X) X(rotary_store, BT_CPU, BT_FLOATS, scalar, 0)

BT_ROTARY_STORE(BT_DECLARE_KERNEL)

#ifdef __cplusplus
}
#endif
#endif
