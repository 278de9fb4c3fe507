/* Rows of planes of trits as bytes: c + SHIFT, in the order of planes of activations. The file that includes this
 * defines before
 *   DECODED     packed bytes that are decoded at once, 16, 32 or 64          SHIFT   what is added to an integer
 * and `lookup`, whose index is below 16 in each byte.
 *
 * Codes of two planes side by side are an index of 4 bits into the integers that they are together. Of a byte with four
 * codes, those of even columns are joined in one byte and those of odd columns in another: two nibbles each. */
#ifndef BT_CPU_TRIT_DEPTH_ROWS_H
#define BT_CPU_TRIT_DEPTH_ROWS_H

#include "../trit_depth_linear.h"

#include <string.h>

typedef uint8_t codes __attribute__((vector_size(DECODED)));
typedef uint8_t codes_in_memory __attribute__((vector_size(DECODED), aligned(1), may_alias));
typedef uint16_t code_pairs __attribute__((vector_size(DECODED)));

static inline __attribute__((always_inline)) codes lookup(const uint8_t table[16], codes index);

/* (trit + 3 trit) * f + s of two codes, modulo 256; code 11 is a trit of 0. */
#define BYTE(value) ((uint8_t)(value))
#define TRITS(f, s) BYTE(s), BYTE((f) + (s)), BYTE((s) - (f)), BYTE(s)
#define TRIT_PAIRS(f, s) {TRITS(f, s), TRITS(f, 3 * (f) + (s)), TRITS(f, (s) - 3 * (f)), TRITS(f, s)}
static const uint8_t lowest_pairs[16] = TRIT_PAIRS(1, SHIFT), middle_pairs[16] = TRIT_PAIRS(9, 0);
static const uint8_t highest_trits[16] = {TRITS(81, 0)}; /* of the fifth plane alone: the sixth would not fit */

static inline __attribute__((always_inline)) codes low_nibbles(codes v) {
    return v & (uint8_t)15;
}
static inline __attribute__((always_inline)) codes high_nibbles(codes v) {
    return (codes)((code_pairs)v >> 4) & (uint8_t)15;
}

/* Sets, or with `add` raises, out[plane] by what the tables say of two planes; `high` is NULL where there is but one.
 */
static inline __attribute__((always_inline)) void join_planes(codes out[4], const uint8_t *low, const uint8_t *high,
                                                              const uint8_t table[16], const int both, const int add) {
    const codes l = *(const codes_in_memory *)low;
    codes even = l & (uint8_t)0x33, odd = (codes)((code_pairs)l >> 2) & (uint8_t)0x33;
    if (both) {
        const codes h = *(const codes_in_memory *)high;
        even |= (codes)((code_pairs)h << 2) & (uint8_t)0xcc;
        odd |= h & (uint8_t)0xcc;
    }
    const codes found[4] = {lookup(table, low_nibbles(even)), lookup(table, low_nibbles(odd)),
                            lookup(table, high_nibbles(even)), lookup(table, high_nibbles(odd))};
#pragma GCC unroll 4
    for (int plane = 0; plane < 4; plane++)
        out[plane] = add ? out[plane] + found[plane] : found[plane];
}

/* DECODED bytes of each plane of a row as 4 x DECODED integers; w[i] is where plane i holds them. */
static inline __attribute__((always_inline)) void decode_codes(codes out[4], const uint8_t *const w[BT_MAX_DEPTH],
                                                               int64_t at, const int depth) {
    join_planes(out, w[0] + at, w[1] + at, lowest_pairs, depth > 1, 0);
    if (depth > 2)
        join_planes(out, w[2] + at, w[3] + at, middle_pairs, depth > 3, 1);
    if (depth > 4)
        join_planes(out, w[4] + at, w[4] + at, highest_trits, 0, 1);
}

/* Each plane is a stream of its own, rows one after the other, and up to five go on at once: more than the hardware
 * follows when rows are short. What lies so far ahead may be past the end of w. */
enum { BT_DEPTH_PREFETCH = 1024 };

/* The bytes [begin, end) of the planes of a row, end being the last. */
static inline __attribute__((always_inline)) void decode_span(uint8_t *out, const uint8_t *const w[BT_MAX_DEPTH],
                                                              int64_t begin, int64_t end, const int depth) {
    for (int64_t at = begin; at < end; at += DECODED) {
        codes found[4];
        for (int i = 0; i < depth; i++)
            __builtin_prefetch(w[i] + at - begin + BT_DEPTH_PREFETCH, 0, 3);
        decode_codes(found, w, at - begin, depth);
        uint8_t *const to = out + at / 64 * 256 + at % 64;
#pragma GCC unroll 4
        for (int plane = 0; plane < 4; plane++)
            *(codes_in_memory *)(to + 64 * plane) = found[plane];
    }
}

/* Row `row`, padded to whole blocks of 256 columns by whatever follows it: q has zeros there. */
static inline __attribute__((always_inline)) void decode_row(const bt_trit_depth_linear *p, int64_t row, uint8_t *out,
                                                             const int depth) {
    const int64_t bytes = bt_div_up(p->k, 4), whole = bytes / 64 * 64;
    const uintptr_t end = (uintptr_t)p->w + (uintptr_t)((depth - 1) * p->plane + (p->n - 1) * p->ldw + bytes);
    const uint8_t *w[BT_MAX_DEPTH];
    uint8_t rest[BT_MAX_DEPTH][64];
    for (int i = 0; i < BT_MAX_DEPTH; i++)
        w[i] = p->w + (i < depth ? i : 0) * p->plane + row * p->ldw;
    decode_span(out, w, 0, whole, depth);
    if (whole == bytes)
        return;
    for (int i = 0; i < BT_MAX_DEPTH; i++) {
        w[i] += whole;
        if ((uintptr_t)w[i] + 64 > end) { /* nothing is read past the last plane */
            memcpy(memset(rest[i], 0, sizeof rest[i]), w[i], (size_t)(bytes - whole));
            w[i] = rest[i];
        }
    }
    decode_span(out, w, whole, whole + 64, depth);
}

static void decode_rows(const bt_trit_depth_linear *p, int64_t row, int count, uint8_t *out, int64_t ld) {
    for (int r = 0; r < count; r++, row++, out += ld)
        switch (p->depth) {
        case 1:
            decode_row(p, row, out, 1);
            break;
        case 2:
            decode_row(p, row, out, 2);
            break;
        case 3:
            decode_row(p, row, out, 3);
            break;
        case 4:
            decode_row(p, row, out, 4);
            break;
        default:
            decode_row(p, row, out, 5);
        }
}

#endif
