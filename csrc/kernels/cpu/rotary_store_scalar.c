/* rotary_store: plain loops, which compilers vectorise; a token is a few thousand values. */
#include "../rotary_store.h"
#include "half.h"

/* The value that the type of the heads keeps of v. */
static float kept(float v, int type) {
    return type == BT_F16 ? bt_from_f16(bt_to_f16(v)) : type == BT_BF16 ? bt_from_bf16(bt_to_bf16(v)) : v;
}

static void turn(float *restrict x, const float *restrict cosine, const float *restrict sine, int64_t half, int type) {
    for (int64_t c = 0; c < half; c++) {
        const float low = x[c], high = x[half + c];
        x[c] = kept(low * cosine[c], type) + high * sine[c];
        x[half + c] = kept(high * cosine[half + c], type) + low * sine[half + c];
    }
}

static void store_token(const bt_rotary_store *p, const bt_attention_sequence *s, int64_t token) {
    float cosine[BT_ATTENTION_MAX_DIM], sine[BT_ATTENTION_MAX_DIM], x[BT_ATTENTION_MAX_DIM];
    const int64_t keys = p->heads_q, values = keys + p->kv_heads, all = values + p->kv_heads;
    const int64_t slot = s->row * p->ldrow + (s->length - s->count + token - s->token) * p->ldslot;
    if (p->rotated) {
        bt_load_many(p->cos, p->type, token * p->ldcos, p->rotated, cosine);
        bt_load_many(p->sin, p->type, token * p->ldcos, p->rotated, sine);
    }
    for (int64_t h = p->rotated ? 0 : keys; h < all; h++) {
        const int64_t at = token * p->ldx + h * p->dim;
        bt_load_many(p->heads, p->type, at, p->dim, x);
        if (p->rotated && h < values) {
            turn(x, cosine, sine, p->rotated / 2, p->type);
            bt_store_many(p->heads, p->type, at, p->rotated, x);
            bt_load_many(p->heads, p->type, at, p->rotated, x);
        }
        if (h >= values)
            bt_store_many(p->v, p->kv_type, slot + (h - values) * p->ldhead, p->dim, x);
        else if (h >= keys)
            bt_store_many(p->k, p->kv_type, slot + (h - keys) * p->ldhead, p->dim, x);
    }
}

bt_status bt_rotary_store_scalar(const bt_rotary_store *p, int64_t tile_begin, int64_t tile_end) {
    const bt_attention_sequence *s = p->sequences;
    BT_ASSERT(p->dim <= BT_ATTENTION_MAX_DIM && p->rotated <= p->dim && p->rotated % 2 == 0);
    for (int64_t token = tile_begin; token < tile_end; token++) {
        while (token >= s->token + s->count)
            s++;
        store_token(p, s, token);
    }
    return BT_OK;
}
