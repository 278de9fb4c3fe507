/* ternary_quantize by NEON, 16 columns at a time; see the header for the rules, quantize_group.h for the frame.
 *
 * The eight lanes of a sum are four vectors of two. The last step of a row works on a copy padded with zeros: they add
 * nothing to a sum of magnitudes, and as no threshold is negative, none is kept. */
#include "neon.h"
#include "quantize_group.h"

enum { STEP = 16, VECTORS = STEP / 4, MIN_GROUP = 16 };

typedef struct sum_t {
    float64x2_t pair[4];
} sum_t;

/* The vector of columns 4 i .. 4 i + 3 of a step. */
BT_NEON_INLINE void add4(sum_t *sum, int i, float32x4_t a) {
    float64x2_t *pair = &sum->pair[i % 2 * 2];
    pair[0] = vaddq_f64(pair[0], vcvt_f64_f32(vget_low_f32(a)));
    pair[1] = vaddq_f64(pair[1], vcvt_high_f64_f32(a));
}

BT_NEON_INLINE void add_squares4(sum_t *sum, int i, float32x4_t v) {
    const float64x2_t low = vcvt_f64_f32(vget_low_f32(v)), high = vcvt_high_f64_f32(v);
    float64x2_t *pair = &sum->pair[i % 2 * 2];
    pair[0] = vfmaq_f64(pair[0], low, low);
    pair[1] = vfmaq_f64(pair[1], high, high);
}

BT_NEON_INLINE void store_sum(double lane[8], const sum_t *sum) {
    for (int i = 0; i < 4; i++)
        vst1q_f64(lane + 2 * i, sum->pair[i]);
}

/* 16 codes to 4 bytes: those of a byte are the lanes of one vector. */
BT_NEON_INLINE void store_codes(uint8_t *packed, int64_t left, const uint32x4_t code[VECTORS]) {
    static const int32_t shifts[4] = {0, 2, 4, 6};
    const int32x4_t by = vld1q_s32(shifts);
    const uint32x4_t low = vpaddq_u32(vshlq_u32(code[0], by), vshlq_u32(code[1], by));
    const uint32x4_t high = vpaddq_u32(vshlq_u32(code[2], by), vshlq_u32(code[3], by));
    const uint16x4_t bytes = vmovn_u32(vpaddq_u32(low, high));
    const uint32_t step = vget_lane_u32(vreinterpret_u32_u8(vmovn_u16(vcombine_u16(bytes, bytes))), 0);
    memcpy(packed, &step, left < STEP ? (size_t)bt_div_up(left, 4) : sizeof step);
}

BT_NEON_INLINE bt_group_stats measure_as(const bt_ternary_quantize *p, const bt_group *g, int type, size_t size) {
    float copy[STEP];
    const int mean = bt_needs_mean(p);
    double lane[8];
    sum_t sum = {{vdupq_n_f64(0), vdupq_n_f64(0), vdupq_n_f64(0), vdupq_n_f64(0)}};
    uint32x4_t most = vdupq_n_u32(0);
    for (int64_t r = g->r0; r < g->r1; r++) {
        const char *w = (const char *)p->w + (r * p->ldx + g->c0) * (int64_t)size;
        for (int64_t left = g->c1 - g->c0; left > 0; left -= STEP, w += STEP * size) {
            const void *from = bt_padded(w, size, left, STEP, copy);
#pragma GCC unroll 4
            for (int i = 0; i < VECTORS; i++) {
                const float32x4_t a = vabsq_f32(bt_neon_load4(from, type, 4 * i));
                most = vmaxq_u32(most, vreinterpretq_u32_f32(a));
                if (mean)
                    add4(&sum, i, a);
            }
        }
    }
    store_sum(lane, &sum);
    return (bt_group_stats){vmaxvq_u32(most), bt_sum_total(lane)};
}

/* One row of a group; returns how many it keeps. */
BT_NEON_INLINE int64_t encode_row(const char *w, int64_t left, int type, size_t size, bt_keep_rule rule, bt_adds adds,
                                  uint8_t *packed, sum_t *sum) {
    const float32x4_t threshold = vdupq_n_f32(rule.threshold);
    float copy[STEP];
    uint32x4_t kept = vdupq_n_u32(0);
    for (; left > 0; left -= STEP, w += STEP * size, packed += STEP / 4) {
        const void *from = bt_padded(w, size, left, STEP, copy);
        uint32x4_t code[VECTORS];
#pragma GCC unroll 4
        for (int i = 0; i < VECTORS; i++) {
            const float32x4_t v = bt_neon_load4(from, type, 4 * i), a = vabsq_f32(v);
            const uint32x4_t keep = vcgtq_f32(vmulq_n_f32(a, rule.multiplier), threshold);
            const uint32x4_t negative = vshrq_n_u32(vreinterpretq_u32_f32(v), 31);
            code[i] = vandq_u32(keep, vaddq_u32(vdupq_n_u32(1), negative));
            kept = vsubq_u32(kept, keep);
            if (adds == BT_ADDS_KEPT)
                add4(sum, i, vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(a), keep)));
            else if (adds == BT_ADDS_SQUARES)
                add_squares4(sum, i, v);
        }
        store_codes(packed, left, code);
    }
    return (int64_t)vaddlvq_u32(kept);
}

BT_NEON_INLINE bt_group_sum encode_as(const bt_ternary_quantize *p, const bt_group *g, bt_keep_rule rule, int type,
                                      size_t size) {
    double lane[8];
    sum_t sum = {{vdupq_n_f64(0), vdupq_n_f64(0), vdupq_n_f64(0), vdupq_n_f64(0)}};
    int64_t kept = 0;
    for (int64_t r = g->r0; r < g->r1; r++) {
        const char *w = (const char *)p->w + (r * p->ldx + g->c0) * (int64_t)size;
        kept += encode_row(w, g->c1 - g->c0, type, size, rule, bt_scale_adds(p->rule),
                           p->packed + r * p->ldw + g->c0 / 4, &sum);
    }
    store_sum(lane, &sum);
    return (bt_group_sum){bt_sum_total(lane), kept};
}

static bt_group_stats measure(const bt_ternary_quantize *p, const bt_group *g) {
    return BT_BY_W_TYPE(measure_as, p, g);
}

static bt_group_sum encode(const bt_ternary_quantize *p, const bt_group *g, bt_keep_rule rule) {
    return BT_BY_W_TYPE(encode_as, p, g, rule);
}

bt_status bt_ternary_quantize_neon(const bt_ternary_quantize *p, int64_t tile_begin, int64_t tile_end) {
    static const bt_group_passes passes = {measure, encode};
    return bt_quantize_by_vectors(p, tile_begin, tile_end, MIN_GROUP, &passes);
}
