/* ternary_from_fields by NEON, 64 bytes at a time: ld4 puts the four bytes that share a byte of each part into the same
 * lane of four vectors. */
#include "fields_run.h"
#include "neon.h"

enum { STEP = 64 };

typedef struct parts_t {
    uint8x16_t part[4];
} parts_t;

BT_NEON_INLINE uint8x16_t codes_of(uint8x16_t fields) {
    const uint8x16_t even = vdupq_n_u8(0x55);
    const uint8x16_t other = veorq_u8(fields, vshlq_n_u8(fields, 1));
    return vorrq_u8(vandq_u8(vshrq_n_u8(fields, 1), even), vbicq_u8(vmvnq_u8(other), even));
}

/* Field `shift / 2` of four vectors side by side. */
BT_NEON_INLINE uint8x16_t fields_at(const uint8x16_t codes[4], int shift) {
    const int8x16_t down = vdupq_n_s8((int8_t)-shift);
    const uint8x16_t low = vsliq_n_u8(vshlq_u8(codes[0], down), vshlq_u8(codes[1], down), 2);
    const uint8x16_t high = vsliq_n_u8(vshlq_u8(codes[2], down), vshlq_u8(codes[3], down), 2);
    return vsliq_n_u8(low, high, 4);
}

BT_NEON_INLINE parts_t parts_of(const uint8_t *data, int high_first, uint8x16_t *reserved) {
    const uint8x16x4_t fields = vld4q_u8(data);
    uint8x16_t codes[4];
    for (int t = 0; t < 4; t++) {
        codes[t] = codes_of(fields.val[t]);
        *reserved = vorrq_u8(*reserved, vandq_u8(fields.val[t], vshrq_n_u8(fields.val[t], 1)));
    }
    parts_t parts;
    for (int i = 0; i < 4; i++)
        parts.part[i] = fields_at(codes, high_first ? 6 - 2 * i : 2 * i);
    return parts;
}

/* Of a part four lanes belong to a run of 16 bytes, eight to one of 32. */
BT_NEON_INLINE void store(const parts_t *parts, uint8_t *w, int64_t ldpart, int run) {
    if (run == 16) {
        uint32x4x4_t words;
        for (int i = 0; i < 4; i++)
            words.val[i] = vreinterpretq_u32_u8(parts->part[i]);
        vst4q_u32((uint32_t *)(void *)w, words);
        return;
    }
    if (run == 32) {
        for (int pair = 0; pair < 2; pair++) {
            const uint64x2_t one = vreinterpretq_u64_u8(parts->part[2 * pair]);
            const uint64x2_t other = vreinterpretq_u64_u8(parts->part[2 * pair + 1]);
            vst1q_u8(w + 16 * pair, vreinterpretq_u8_u64(vzip1q_u64(one, other)));
            vst1q_u8(w + 32 + 16 * pair, vreinterpretq_u8_u64(vzip2q_u64(one, other)));
        }
        return;
    }
    for (int i = 0; i < 4; i++)
        vst1q_u8(w + i * ldpart, parts->part[i]);
}

/* As of AVX2. */
BT_NEON_INLINE int span_of(const bt_ternary_from_fields *p, const uint8_t *data, uint8_t *w, int run) {
    const int64_t span = p->runs * p->run;
    uint8x16_t reserved = vdupq_n_u8(0);
    int64_t m = 0;
    for (; m + STEP <= span; m += STEP) {
        const parts_t parts = parts_of(data + m, p->high_first, &reserved);
        store(&parts, w + (run ? m : m / 4), p->ldpart, run);
    }
    int found = vmaxvq_u8(vandq_u8(reserved, vdupq_n_u8(0x55))) != 0;
    if (run == 0 && m < span)
        return found | bt_fields_run(p, data, w, m);
    for (; m < span; m += run)
        found |= bt_fields_run(p, data + m, w + m, 0);
    return found;
}

bt_status bt_ternary_from_fields_neon(const bt_ternary_from_fields *p, int64_t row_begin, int64_t row_end) {
    const int blocks_of = p->ldpart == p->run / 4 && (p->run == 16 || p->run == 32) ? (int)p->run : 0;
    if (!blocks_of && p->runs != 1)
        return bt_ternary_from_fields_scalar(p, row_begin, row_end);
    for (int64_t r = row_begin; r < row_end; r++) {
        int reserved = 0;
        for (int64_t block = 0; block < p->blocks; block++) {
            const uint8_t *data = p->data + r * p->ldd + block * p->ldblock;
            uint8_t *w = p->w + r * p->ldw + block * p->runs * p->run;
            reserved |= blocks_of == 16   ? span_of(p, data, w, 16)
                        : blocks_of == 32 ? span_of(p, data, w, 32)
                                          : span_of(p, data, w, 0);
        }
        p->reserved[r] = (uint8_t)reserved;
    }
    return BT_OK;
}
