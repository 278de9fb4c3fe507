/* act_quantize by NEON, 64 columns at a time; formula and orders in the header.
 *
 *   columns 0..15, 16..31, 32..47, 48..63      natural: 64 bytes      planes: 16 bytes to each of the four planes
 *
 * fcvtns rounds half to even and the narrowing saturates at 127: only -128 is left to clamp. A row's last columns go
 * through a zeroed buffer: zeros change neither the absmax nor the sum. */
#include "act_quantize_row.h"
#include "neon.h"

enum { STEP = 64 };

/* The columns from c on, of which STEP can be read: in place, or through the buffer. */
BT_NEON_INLINE const void *step_at(const void *x, int type, int64_t c, int64_t k, void *buffer) {
    const size_t size = type == BT_F32 ? sizeof(float) : sizeof(uint16_t);
    return bt_padded((const char *)x + (size_t)c * size, size, k - c, STEP, buffer);
}

BT_NEON_INLINE void load_step(const void *x, int type, int64_t c, int64_t k, float32x4_t v[STEP / 4]) {
    float buffer[STEP];
    const void *const at = step_at(x, type, c, k, buffer);
#pragma GCC unroll 16
    for (int j = 0; j < STEP / 4; j++)
        v[j] = bt_neon_load4(at, type, 4 * j);
}

BT_NOINLINE static void apply_norm(const bt_act_quantize *p, const bt_act_row *row, int64_t c,
                                   float32x4_t v[STEP / 4]) {
    float32x4_t weight[STEP / 4];
    load_step(row->norm, p->norm_type, c, p->k, weight);
    for (int j = 0; j < STEP / 4; j++)
        v[j] = vmulq_f32(vmulq_n_f32(v[j], row->factor), weight[j]);
}

/* The columns from c on, as they are to be quantised. */
BT_NEON_INLINE void load_row(const bt_act_quantize *p, const bt_act_row *row, int type, int64_t c,
                             float32x4_t v[STEP / 4]) {
    load_step(row->x, type, c, p->k, v);
    if (row->norm)
        apply_norm(p, row, c, v);
}

static void square_sums(const bt_act_quantize *p, const bt_act_row *row, double lane[BT_NORM_LANES]) {
    for (int64_t c = 0; c < p->k; c += STEP) {
        float32x4_t v[STEP / 4];
        float x[STEP];
        load_step(row->x, p->x_type, c, p->k, v);
        for (int j = 0; j < STEP / 4; j++)
            vst1q_f32(x + 4 * j, v[j]);
        bt_add_squares(lane, c, x, STEP);
    }
}

BT_NEON_INLINE uint32_t find_absmax(const bt_act_quantize *p, const bt_act_row *row, int type) {
    uint32x4_t most[4] = {vdupq_n_u32(0), vdupq_n_u32(0), vdupq_n_u32(0), vdupq_n_u32(0)};
    for (int64_t c = 0; c < p->k; c += STEP) {
        float32x4_t v[STEP / 4];
        load_row(p, row, type, c, v);
#pragma GCC unroll 16
        for (int j = 0; j < STEP / 4; j++) {
            const uint32x4_t bits = vreinterpretq_u32_f32(v[j]);
            most[j % 4] = vmaxq_u32(most[j % 4], vbicq_u32(bits, vdupq_n_u32(0x80000000u)));
        }
    }
    return vmaxvq_u32(vmaxq_u32(vmaxq_u32(most[0], most[1]), vmaxq_u32(most[2], most[3])));
}

BT_NEON_INLINE int8x16_t quantize16(const float32x4_t x[4], float inverse) {
    int32x4_t code[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++)
        code[j] = vcvtnq_s32_f32(vmulq_n_f32(x[j], inverse));
    const int16x8_t low = vcombine_s16(vqmovn_s32(code[0]), vqmovn_s32(code[1]));
    const int16x8_t high = vcombine_s16(vqmovn_s32(code[2]), vqmovn_s32(code[3]));
    return vmaxq_s8(vcombine_s8(vqmovn_s16(low), vqmovn_s16(high)), vdupq_n_s8(-127));
}

/* q at plane 0 of the 64 columns. */
BT_NEON_INLINE void store_planes(int8_t *q, const int8x16_t *code) {
    const int8x16_t even0 = vuzp1q_s8(code[0], code[1]), even1 = vuzp1q_s8(code[2], code[3]);
    const int8x16_t odd0 = vuzp2q_s8(code[0], code[1]), odd1 = vuzp2q_s8(code[2], code[3]);
    vst1q_s8(q, vuzp1q_s8(even0, even1));
    vst1q_s8(q + 64, vuzp1q_s8(odd0, odd1));
    vst1q_s8(q + 128, vuzp2q_s8(even0, even1));
    vst1q_s8(q + 192, vuzp2q_s8(odd0, odd1));
}

BT_NEON_INLINE void store_natural(int8_t *q, const int8x16_t *code, int64_t count) {
    int8_t buffer[STEP];
    int8_t *to = count < STEP ? buffer : q;
    for (int j = 0; j < 4; j++)
        vst1q_s8(to + 16 * j, code[j]);
    if (count < STEP)
        memcpy(q, buffer, (size_t)count);
}

/* The codes of columns c .. c + 63 of a row of k. */
BT_NEON_INLINE void store_codes(int8_t *q, const int8x16_t *code, int64_t c, int64_t k, int order) {
    if (order == BT_ORDER_PLANES)
        store_planes(q + c / BT_ACT_BLOCK * BT_ACT_BLOCK + c % BT_ACT_BLOCK / 4, code);
    else
        store_natural(q + c, code, k - c);
}

BT_NEON_INLINE int32_t quantize(const bt_act_quantize *p, const bt_act_row *row, int type, float inverse, int8_t *q) {
    int32x4_t sum = vdupq_n_s32(0);
    for (int64_t c = 0; c < p->k; c += STEP) {
        float32x4_t v[STEP / 4];
        int8x16_t code[4];
        load_row(p, row, type, c, v);
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
            code[j] = quantize16(v + 4 * j, inverse);
            sum = vpadalq_s16(sum, vpaddlq_s8(code[j]));
        }
        store_codes(q, code, c, p->k, p->order);
    }
    return vaddvq_s32(sum);
}

/* clamp(rint(x * inverse), -most, most) in fp64, for four floats. */
BT_NEON_INLINE int32x4_t scaled_codes(float32x4_t x, double inverse, int32_t most) {
    const float64x2_t low = vmulq_n_f64(vcvt_f64_f32(vget_low_f32(x)), inverse);
    const float64x2_t high = vmulq_n_f64(vcvt_high_f64_f32(x), inverse);
    const int32x4_t code = vcombine_s32(vmovn_s64(vcvtnq_s64_f64(low)), vmovn_s64(vcvtnq_s64_f64(high)));
    return vminq_s32(vmaxq_s32(code, vdupq_n_s32(-most)), vdupq_n_s32(most));
}

/* The lowest digits of 16 codes, which are left with the others; bt_next_digit(). */
BT_NEON_INLINE int8x16_t take_digits(int32x4_t code[4]) {
    int16x4_t digit[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
        const int32x4_t rest = vshrq_n_s32(vaddq_s32(code[j], vdupq_n_s32(128)), 8);
        digit[j] = vmovn_s32(vsubq_s32(code[j], vshlq_n_s32(rest, 8)));
        code[j] = rest;
    }
    return vcombine_s8(vmovn_s16(vcombine_s16(digit[0], digit[1])), vmovn_s16(vcombine_s16(digit[2], digit[3])));
}

static void encode_digits(const bt_act_quantize *p, const bt_act_row *row, double inverse, int8_t *q, int32_t *sum) {
    for (int64_t c = 0; c < p->k; c += STEP) {
        float32x4_t v[STEP / 4];
        load_row(p, row, p->x_type, c, v);
        int32x4_t code[STEP / 4];
        for (int j = 0; j < STEP / 4; j++)
            code[j] = scaled_codes(v[j], inverse, bt_digits_max(p->digits));
        for (int d = 0; d < p->digits; d++) {
            int8x16_t digit[4];
            for (int j = 0; j < 4; j++) {
                digit[j] = take_digits(code + 4 * j);
                sum[d] += vaddlvq_s8(digit[j]);
            }
            store_codes(q + d * p->ldq, digit, c, p->k, p->order);
        }
    }
}

static uint32_t absmax_bits(const bt_act_quantize *p, const bt_act_row *row) {
    return p->x_type == BT_F32   ? find_absmax(p, row, BT_F32)
           : p->x_type == BT_F16 ? find_absmax(p, row, BT_F16)
                                 : find_absmax(p, row, BT_BF16);
}

static int32_t encode_row(const bt_act_quantize *p, const bt_act_row *row, float inverse, int8_t *q) {
    return p->x_type == BT_F32   ? quantize(p, row, BT_F32, inverse, q)
           : p->x_type == BT_F16 ? quantize(p, row, BT_F16, inverse, q)
                                 : quantize(p, row, BT_BF16, inverse, q);
}

bt_status bt_act_quantize_neon(const bt_act_quantize *p, int64_t row_begin, int64_t row_end) {
    static const bt_act_passes passes = {square_sums, absmax_bits, encode_row, encode_digits};
    return bt_act_rows(p, row_begin, row_end, &passes);
}
