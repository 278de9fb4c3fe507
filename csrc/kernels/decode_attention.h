/* decode_attention: the last few tokens of sequences attend to the keys and values that a cache holds.
 *
 *   y[i][h] = cast( sum_t w_t v[t] / sum_t w_t )      w_t = 2^(s_t - max s)      s_t = sum_c fl(q[i][h][c] * factor) *
 * k[t][c]
 *
 * with factor = fl(scale / ln 2) and h / (heads / kv_heads) the head of k and v. Token i of the `count` new ones of a
 * sequence of `length` tokens stands at position length - count + i and sees the slots from bt_attention_begin() up to
 * its own. What no token sees is not read. A token that sees nothing, or whose scores are all -Inf, gives 0.
 *
 * CPU contract: all is fp32. A score has 16 lanes, lane c % 16 takes column c, in rising order and by fused
 * multiply-adds; lanes j and j + 8, j + 4, j + 2, j + 1 are added. Weights are bt_attention_exp2(), 0 below 2^-126.
 * Slots are cut into splits at multiples of BT_ATTENTION_SPLIT. A split has its own maximum, which no NaN is; the sum
 * of its weights has 16 lanes and that tree again, the first lane taking the first slot that the token sees; and its
 * sum of values is one chain of fused multiply-adds a column. bt_decode_attention_combine() adds splits in rising
 * order. So a token's bits depend neither on the kernel nor on threads, nor on its company, nor on where its row lies.
 *
 * A tile is a split of a head of k and v of a sequence. CUDA: torch's scaled_dot_product_attention, by
 * csrc/dispatch/decode_attention.cpp. */
#ifndef BT_DECODE_ATTENTION_H
#define BT_DECODE_ATTENTION_H
#include "bt_common.h"

#include <math.h>
#include <string.h>
#ifdef __cplusplus
extern "C" {
#endif

enum { BT_ATTENTION_SPLIT = 256, BT_ATTENTION_LANES = 16, BT_ATTENTION_MAX_DIM = 512, BT_ATTENTION_MAX_TOKENS = 8 };

typedef struct bt_attention_sequence {
    int64_t token;  /* number of its first new token, of q and y */
    int64_t count;  /* of its new tokens, at most its length */
    int64_t row;    /* of the cache */
    int64_t length; /* slots that it has there, those of the new tokens included */
    int64_t tile;   /* number of its first tile, as bt_attention_place() gives it */
    int64_t part;   /* the same of its parts */
} bt_attention_sequence;

typedef struct bt_decode_attention {
    const void *q;                          /* tokens of heads x dim, ldq elements apart */
    const void *k, *v;                      /* slot t of a head of a row: row * ldrow + head * ldhead + t * ldslot */
    void *y;                                /* tokens of heads x dim, ldy elements apart */
    float *parts;                           /* of bt_attention_part_size() each, as many as bt_attention_place() says */
    const bt_attention_sequence *sequences; /* of which there are `count` */
    int64_t count, heads, kv_heads, dim;    /* kv_heads divides heads; dim up to BT_ATTENTION_MAX_DIM */
    int64_t window;                         /* a token sees itself and so many before it; 0 for all */
    int64_t ldq, ldy, ldrow, ldhead, ldslot;
    float factor;
    int type, kv_type; /* of q and y; of k and v */
    void *stream;
} bt_decode_attention;

typedef bt_status bt_decode_attention_fn(const bt_decode_attention *p, int64_t tile_begin, int64_t tile_end);

/* The first slot that the token at a position sees. */
static inline int64_t bt_attention_begin(int64_t window, int64_t position) {
    return window > 0 && position > window ? position - window : 0;
}

/* The first split of a sequence, and how many it has. */
static inline int64_t bt_attention_first(const bt_decode_attention *p, const bt_attention_sequence *s) {
    return bt_attention_begin(p->window, s->length - s->count) / BT_ATTENTION_SPLIT;
}
static inline int64_t bt_attention_splits(const bt_decode_attention *p, const bt_attention_sequence *s) {
    return s->count == 0 ? 0 : bt_div_up(s->length, BT_ATTENTION_SPLIT) - bt_attention_first(p, s);
}

/* A part is what a split gives for a token and head: the sum of values, the maximum, the sum of weights. */
static inline int64_t bt_attention_part_size(const bt_decode_attention *p) {
    return p->dim + BT_ATTENTION_LANES;
}
static inline float *bt_attention_part(const bt_decode_attention *p, const bt_attention_sequence *s, int64_t i,
                                       int64_t head, int64_t split) {
    const int64_t index = (i * p->heads + head) * bt_attention_splits(p, s) + split - bt_attention_first(p, s);
    return p->parts + (s->part + index) * bt_attention_part_size(p);
}

/* Gives the sequences their tiles and parts. Returns the number of tiles, and that of parts through `parts`. */
static inline int64_t bt_attention_place(const bt_decode_attention *p, bt_attention_sequence *sequences,
                                         int64_t *parts) {
    int64_t tile = 0, part = 0;
    for (int64_t i = 0; i < p->count; i++) {
        const int64_t splits = bt_attention_splits(p, &sequences[i]);
        sequences[i].tile = tile, sequences[i].part = part;
        tile += splits * p->kv_heads;
        part += splits * p->heads * sequences[i].count;
    }
    *parts = part;
    return tile;
}

/* The polynomial of 2^f - 1 over f, |f| <= 1/2: relative error of 2^f below 2^-25 before its roundings. */
#define BT_EXP2_POLYNOMIAL(X)                                                                                          \
    X(0x1.41fbbcp-13f) X(0x1.5f3e52p-10f) X(0x1.3b2d4cp-7f) X(0x1.c6aee8p-5f) X(0x1.ebfbdcp-3f) X(0x1.62e43p-1f)
#define BT_EXP2_SHIFT 12582912.0f /* 1.5 * 2^23: added, it rounds to an integer, which its last bits then hold */
#define BT_EXP2_LEAST -126.0f

/* 2^x for x <= 0, 0 below BT_EXP2_LEAST; NaN for NaN. */
static inline float bt_attention_exp2(float x) {
    const float shifted = x + BT_EXP2_SHIFT, f = x - (shifted - BT_EXP2_SHIFT);
    uint32_t bits, least;
    float power, sum = 0.0f;
    memcpy(&bits, &shifted, sizeof bits);
    least = 127u + bits - 0x4b400000u; /* the exponent; the bits of the shift are 0x4b400000 */
    least <<= 23;
    memcpy(&power, &least, sizeof power);
#define BT_STEP(c) sum = fmaf(sum, f, c);
    BT_EXP2_POLYNOMIAL(BT_STEP)
#undef BT_STEP
    return x < BT_EXP2_LEAST ? 0.0f : fmaf(sum, f, 1.0f) * power;
}

/* CPU: y of the (token, head) pairs [begin, end), pair token * heads + head; to be called when all tiles have run. */
BT_EXPORT bt_status bt_decode_attention_combine(const bt_decode_attention *p, int64_t begin, int64_t end);

#define BT_DECODE_ATTENTION(X)                                                                                         \
    BT_ON_X86(X(decode_attention, BT_CPU, BT_FLOATS, avx512, BT_CPU_AVX512))                                           \
    BT_ON_X86(X(decode_attention, BT_CPU, BT_FLOATS, avx2, BT_CPU_AVX2))                                               \
    BT_ON_ARM(X(decode_attention, BT_CPU, BT_FLOATS, neon, BT_CPU_NEON))                                               \
    X(decode_attention, BT_CPU, BT_FLOATS, scalar, 0)

BT_DECODE_ATTENTION(BT_DECLARE_KERNEL)

#ifdef __cplusplus
}
#endif
#endif
