/* fp16 and bf16 in plain C: exact widening, narrowing with round half to even, as F16C and torch do it. NaN stays NaN
 * (quiet).
 *
 *   fp16  s eeeee mmmmmmmmmm, bias 15        bf16  the upper half of an fp32 */
#ifndef BT_CPU_HALF_H
#define BT_CPU_HALF_H

#include "../bt_common.h"

#include <string.h>

BT_INLINE uint32_t bt_float_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

BT_INLINE float bt_bits_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

BT_INLINE float bt_from_bf16(uint16_t h) {
    return bt_bits_float((uint32_t)h << 16);
}

BT_INLINE uint16_t bt_to_bf16(float value) {
    const uint32_t bits = bt_float_bits(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)(bits >> 16 | 0x0040u);
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

/* Without fp32 subnormals and without branches: the same under flush-to-zero, and several at once in a loop. */
BT_INLINE float bt_from_f16(uint16_t h) {
    const uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
    const uint32_t magnitude = h & 0x7fffu, moved = magnitude << 13;
    /* 0x38000000 is the difference of the biases; Inf and NaN have the largest exponent, so they move twice as far. */
    const uint32_t normal = moved + (magnitude >= 0x7c00u ? 0x70000000u : 0x38000000u);
    /* The fraction of a subnormal on top of 2^-14, which is then taken away. */
    const uint32_t subnormal = bt_float_bits(bt_bits_float(moved + 0x38800000u) - 0x1p-14f);
    return bt_bits_float(sign | (magnitude < 0x0400u ? subnormal : normal));
}

BT_INLINE uint16_t bt_to_f16(float value) {
    const uint32_t bits = bt_float_bits(value);
    const uint16_t sign = (uint16_t)(bits >> 16 & 0x8000u);
    const uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u)
        return (uint16_t)(sign | 0x7e00u | (magnitude >> 13 & 0x3ffu));
    if (magnitude >= 0x477ff000u) /* 65520: halfway to the next power of two, rounds to Inf */
        return (uint16_t)(sign | 0x7c00u);
    if (magnitude < 0x38800000u) { /* below 2^-14: the addition of 0.5 aligns and rounds to multiples of 2^-24 */
        const float aligned = bt_bits_float(magnitude) + 0.5f;
        return (uint16_t)(sign | (bt_float_bits(aligned) - bt_float_bits(0.5f)));
    }
    const uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u);
    return (uint16_t)(sign | ((rounded - 0x38000000u) >> 13));
}

BT_INLINE float bt_load(const void *base, int type, int64_t index) {
    switch (type) {
    case BT_F16:
        return bt_from_f16(((const uint16_t *)base)[index]);
    case BT_BF16:
        return bt_from_bf16(((const uint16_t *)base)[index]);
    default:
        return ((const float *)base)[index];
    }
}

BT_INLINE void bt_store(void *base, int type, int64_t index, float value) {
    switch (type) {
    case BT_F16:
        ((uint16_t *)base)[index] = bt_to_f16(value);
        break;
    case BT_BF16:
        ((uint16_t *)base)[index] = bt_to_bf16(value);
        break;
    default:
        ((float *)base)[index] = value;
    }
}

/* The sum of a product with its bias, when there is one, as the output wants it. */
BT_INLINE void bt_finish(void *y, int y_type, int64_t index, float value, const void *bias, int bias_type,
                         int64_t row) {
    bt_store(y, y_type, index, bias ? value + bt_load(bias, bias_type, row) : value);
}

#endif
