/* Quantised blocks to codes, scales and fp32 weights: plain loops, which compilers vectorise with the instructions of
 * the file that includes this.
 *
 * A step is up to 256 weights: one long block, or short ones in a row. Bytes hold codes of less than 8 bits in fields:
 * the first field of all bytes of a run, then the next one of all.
 * Source: the layouts of ggml, as gguf-py 0.19 decodes them. */
#ifndef BT_CPU_BLOCK_CODES_H
#define BT_CPU_BLOCK_CODES_H

#include "../block_unpack.h"
#include "half.h"

enum { BT_BLOCK_STEP = 256, BT_BLOCK_GROUP = 16 };

typedef struct bt_block_codes {
    int8_t q[BT_BLOCK_STEP];
    float scale[BT_BLOCK_STEP / BT_BLOCK_GROUP], least[BT_BLOCK_STEP / BT_BLOCK_GROUP];
} bt_block_codes;

static inline float bt_block_half(const uint8_t *at) {
    return bt_from_f16((uint16_t)(at[0] | at[1] << 8));
}

/* One scale and one least for groups [begin, begin + count). */
static inline void bt_block_groups(bt_block_codes *out, int begin, int count, float scale, float least) {
    for (int g = begin; g < begin + count; g++) {
        out->scale[g] = scale;
        out->least[g] = least;
    }
}

typedef uint8_t bt_block_16 __attribute__((vector_size(16), aligned(1), may_alias));

/* Nibbles of 16 bytes: the low ones to `low`, the high ones to `high`. */
static inline void bt_block_nibbles(const uint8_t *data, int8_t *low, int8_t *high) {
    const bt_block_16 bytes = *(const bt_block_16 *)data;
    *(bt_block_16 *)low = bytes & 15;
    *(bt_block_16 *)high = bytes >> 4;
}

/* Nibbles of 32 bytes: low ones, then high ones. */
static inline void bt_block_long_nibbles(const uint8_t *data, int8_t *q) {
    bt_block_nibbles(data, q, q + 32);
    bt_block_nibbles(data + 16, q + 16, q + 48);
}

/* Takes `offset` from 32 codes. */
static inline void bt_block_less(int8_t *q, int offset) {
    for (int i = 0; i < 32; i += 16)
        *(bt_block_16 *)(q + i) -= (uint8_t)offset;
}

/* Nibbles of 16 bytes through a table: the low ones, then the high ones. */
static inline void bt_block_levels(const uint8_t *restrict data, const int8_t *restrict level, int8_t *restrict q) {
    for (int i = 0; i < 16; i++) {
        q[i] = level[data[i] & 15];
        q[16 + i] = level[data[i] >> 4];
    }
}

/* Adds 16 where bit i of four bytes is set. Eight bytes of a word have one bit each, which a sum carries to the top. */
static inline void bt_block_fifth(const uint8_t *data, int8_t *q) {
    for (int i = 0; i < 4; i++) {
        const uint64_t bits = data[i] * UINT64_C(0x0101010101010101) & UINT64_C(0x8040201008040201);
        const uint64_t tops = (bits + UINT64_C(0x7f7f7f7f7f7f7f7f)) & UINT64_C(0x8080808080808080);
        uint64_t codes;
        memcpy(&codes, q + 8 * i, sizeof codes);
        codes |= tops >> 3;
        memcpy(q + 8 * i, &codes, sizeof codes);
    }
}

/* Fields of two bits of `runs` runs of 32 bytes. */
static inline void bt_block_pairs(const uint8_t *restrict data, int runs, int8_t *restrict q) {
    for (int run = 0; run < runs; run++)
        for (int field = 0; field < 4; field++)
            for (int i = 0; i < 32; i++)
                q[128 * run + 32 * field + i] = (int8_t)(data[32 * run + i] >> (2 * field) & 3);
}

/* Eight scales and eight minima of six bits in 12 bytes; those of the last four have their top bits with the first. */
static inline void bt_block_sixes(const uint8_t *b, bt_block_codes *out) {
    const float d = bt_block_half(b), least = bt_block_half(b + 2);
    for (int g = 0; g < 4; g++) {
        const int low = b[4 + g], high = b[8 + g], rest = b[12 + g];
        bt_block_groups(out, 2 * g, 2, (float)(low & 63) * d, (float)(high & 63) * least);
        bt_block_groups(out, 2 * g + 8, 2, (float)((rest & 15) | low >> 6 << 4) * d,
                        (float)(rest >> 4 | high >> 6 << 4) * least);
    }
}

static inline void bt_block_q2_0(const uint8_t *b, int weights, int8_t *restrict q) {
    for (int i = 0; i < weights / 4; i++)
        for (int field = 0; field < 4; field++)
            q[4 * i + field] = (int8_t)((b[2 + i] >> (2 * field) & 3) - 1);
}

static inline void bt_block_q2_k(const uint8_t *b, bt_block_codes *out) {
    const float d = bt_block_half(b + 80), least = bt_block_half(b + 82);
    for (int g = 0; g < 16; g++)
        bt_block_groups(out, g, 1, (float)(b[g] & 15) * d, (float)(b[g] >> 4) * least);
    bt_block_pairs(b + 16, 2, out->q);
}

/* A clear bit of the mask subtracts 4. */
static inline void bt_block_q3_k(const uint8_t *b, bt_block_codes *out) {
    const float d = bt_block_half(b + 108);
    for (int g = 0; g < 16; g++) {
        const int low = b[96 + g % 8] >> (g / 8 * 4) & 15, high = b[104 + g % 4] >> (g / 4 * 2) & 3;
        bt_block_groups(out, g, 1, (float)((low | high << 4) - 32) * d, 0.0f);
    }
    bt_block_pairs(b + 32, 2, out->q);
    for (int bit = 0; bit < 8; bit++)
        for (int i = 0; i < 32; i++)
            out->q[32 * bit + i] = (int8_t)(out->q[32 * bit + i] - ((~b[i] >> bit & 1) << 2));
}

static inline void bt_block_q4_k(const uint8_t *b, bt_block_codes *out) {
    bt_block_sixes(b, out);
    for (int run = 0; run < 4; run++)
        bt_block_long_nibbles(b + 16 + 32 * run, out->q + 64 * run);
}

static inline void bt_block_q5_k(const uint8_t *b, bt_block_codes *out) {
    bt_block_sixes(b, out);
    for (int run = 0; run < 4; run++)
        bt_block_long_nibbles(b + 48 + 32 * run, out->q + 64 * run);
    for (int g = 0; g < 8; g++)
        for (int i = 0; i < 32; i++)
            out->q[32 * g + i] = (int8_t)(out->q[32 * g + i] | (b[16 + i] >> g & 1) << 4);
}

/* Two halves of 128: four low bits in nibbles of 64 bytes, two high ones in 32 bytes. */
static inline void bt_block_q6_k(const uint8_t *b, bt_block_codes *out) {
    const float d = bt_block_half(b + 208);
    for (int g = 0; g < 16; g++)
        bt_block_groups(out, g, 1, (float)(int8_t)b[192 + g] * d, 0.0f);
    for (int half = 0; half < 2; half++) {
        const uint8_t *restrict const low = b + 64 * half, *restrict const high = b + 128 + 32 * half;
        int8_t *restrict const q = out->q + 128 * half;
        for (int i = 0; i < 32; i++) {
            q[i] = (int8_t)(((low[i] & 15) | (high[i] & 3) << 4) - 32);
            q[32 + i] = (int8_t)(((low[32 + i] & 15) | (high[i] >> 2 & 3) << 4) - 32);
            q[64 + i] = (int8_t)((low[i] >> 4 | (high[i] >> 4 & 3) << 4) - 32);
            q[96 + i] = (int8_t)((low[32 + i] >> 4 | high[i] >> 6 << 4) - 32);
        }
    }
}

/* The 16 levels of IQ4, which are denser near zero; and twice the values of a float of one sign, two exponent bits and
 * one fraction bit. */
static const int8_t bt_block_iq4[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
static const int8_t bt_block_e2m1[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

static inline void bt_block_iq4_xs(const uint8_t *b, bt_block_codes *out) {
    const float d = bt_block_half(b);
    for (int g = 0; g < 8; g++) {
        const int low = b[4 + g / 2] >> (g % 2 * 4) & 15, high = (b[2] | b[3] << 8) >> (2 * g) & 3;
        bt_block_groups(out, 2 * g, 2, (float)((low | high << 4) - 32) * d, 0.0f);
        bt_block_levels(b + 8 + 16 * g, bt_block_iq4, out->q + 32 * g);
    }
}

/* 2^(byte - 128). */
static inline float bt_block_power(uint8_t byte) {
    return bt_bits_float(byte >= 2 ? (uint32_t)(byte - 1) << 23 : 0x00200000u << byte);
}

/* A block of 32 weights, which are group `g` and the next one. */
static inline __attribute__((always_inline)) void bt_block_short(int block, const uint8_t *b, bt_block_codes *out,
                                                                 int g) {
    int8_t *const q = out->q + BT_BLOCK_GROUP * g;
    bt_block_groups(out, g, 2, block == BT_BLOCK_MXFP4 ? bt_block_power(b[0]) : bt_block_half(b),
                    block == BT_BLOCK_Q4_1 || block == BT_BLOCK_Q5_1 ? -bt_block_half(b + 2) : 0.0f);
    if (block == BT_BLOCK_Q8_0)
        memcpy(q, b + 2, 32);
    else if (block == BT_BLOCK_IQ4_NL)
        bt_block_levels(b + 2, bt_block_iq4, q);
    else if (block == BT_BLOCK_MXFP4)
        bt_block_levels(b + 1, bt_block_e2m1, q);
    else if (block == BT_BLOCK_Q4_0 || block == BT_BLOCK_Q4_1) {
        bt_block_nibbles(b + (block == BT_BLOCK_Q4_0 ? 2 : 4), q, q + 16);
        bt_block_less(q, block == BT_BLOCK_Q4_0 ? 8 : 0);
    } else {
        const int bits = block == BT_BLOCK_Q5_0 ? 2 : 4;
        bt_block_nibbles(b + bits + 4, q, q + 16);
        bt_block_fifth(b + bits, q);
        bt_block_less(q, block == BT_BLOCK_Q5_0 ? 16 : 0);
    }
}

#define BT_BLOCK_SHORT(name)                                                                                           \
    case BT_BLOCK_##name:                                                                                              \
        for (int c = 0; c < count; c += 32, b += bt_block_row_bytes(BT_BLOCK_##name, 32))                              \
            bt_block_short(BT_BLOCK_##name, b, out, c / BT_BLOCK_GROUP);                                               \
        break;
#define BT_BLOCK_LONG(name, decode)                                                                                    \
    case BT_BLOCK_##name:                                                                                              \
        decode(b, out);                                                                                                \
        break;

/* `count` weights from b on. */
static inline __attribute__((always_inline)) void bt_block_read(int block, const uint8_t *b, int count,
                                                                bt_block_codes *out) {
    switch (block) {
        BT_BLOCK_SHORT(Q8_0)
        BT_BLOCK_SHORT(Q4_0)
        BT_BLOCK_SHORT(Q4_1)
        BT_BLOCK_SHORT(Q5_0)
        BT_BLOCK_SHORT(Q5_1)
        BT_BLOCK_SHORT(IQ4_NL)
        BT_BLOCK_SHORT(MXFP4)
        BT_BLOCK_LONG(Q2_K, bt_block_q2_k)
        BT_BLOCK_LONG(Q3_K, bt_block_q3_k)
        BT_BLOCK_LONG(Q4_K, bt_block_q4_k)
        BT_BLOCK_LONG(Q5_K, bt_block_q5_k)
        BT_BLOCK_LONG(Q6_K, bt_block_q6_k)
        BT_BLOCK_LONG(IQ4_XS, bt_block_iq4_xs)
    default: { /* Q2_0, in blocks of 64 or 128 */
        const int weights = (int)bt_block_weights(block);
        for (int c = 0; c < count; c += weights, b += bt_block_row_bytes(block, weights)) {
            bt_block_groups(out, c / BT_BLOCK_GROUP, weights / BT_BLOCK_GROUP, bt_block_half(b), 0.0f);
            bt_block_q2_0(b, weights, out->q + c);
        }
    }
    }
}

static inline int bt_block_step(int64_t left) {
    return left < BT_BLOCK_STEP ? (int)left : BT_BLOCK_STEP;
}

#endif
