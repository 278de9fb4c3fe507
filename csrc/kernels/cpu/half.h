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

/* Without fp32 subnormals and without branches: the same under flush-to-zero, and several at once in a loop. The biases
 * differ by 112 << 23; Inf and NaN, which have the largest exponent, move twice as far. A subnormal is read as 2^-14
 * plus its fraction, and 2^-14 is taken away. */
BT_INLINE float bt_from_f16(uint16_t h) {
    const uint32_t sign = (uint32_t)(h & 0x8000u) << 16, magnitude = h & 0x7fffu;
    const uint32_t subnormal = magnitude < 0x0400u, infinite = magnitude >= 0x7c00u;
    const uint32_t bits = (magnitude << 13) + ((112u + 112u * infinite + subnormal) << 23);
    const float value = bt_bits_float(bits) - bt_bits_float(subnormal * 0x38800000u);
    return bt_bits_float(sign | bt_float_bits(value));
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

/* `count` elements as fp32. The type is decided outside the loops, so that a compiler can widen several at once. */
static inline void bt_load_many(const void *base, int type, int64_t index, int64_t count, float *out) {
    if (type == BT_F16)
        for (int64_t i = 0; i < count; i++)
            out[i] = bt_from_f16(((const uint16_t *)base)[index + i]);
    else if (type == BT_BF16)
        for (int64_t i = 0; i < count; i++)
            out[i] = bt_from_bf16(((const uint16_t *)base)[index + i]);
    else
        memcpy(out, (const float *)base + index, (size_t)count * sizeof *out);
}

/* The same the other way round. */
static inline void bt_store_many(void *base, int type, int64_t index, int64_t count, const float *value) {
    if (type == BT_F16)
        for (int64_t i = 0; i < count; i++)
            ((uint16_t *)base)[index + i] = bt_to_f16(value[i]);
    else if (type == BT_BF16)
        for (int64_t i = 0; i < count; i++)
            ((uint16_t *)base)[index + i] = bt_to_bf16(value[i]);
    else
        memcpy((float *)base + index, value, (size_t)count * sizeof *value);
}

/* `count` elements from x on, or, when fewer are left, a copy of these followed by zeros. */
static inline __attribute__((always_inline)) const void *bt_padded(const void *x, size_t size, int64_t left,
                                                                   int64_t count, void *buffer) {
    if (left >= count)
        return x;
    memset(buffer, 0, size * (size_t)count);
    memcpy(buffer, x, size * (size_t)left);
    return buffer;
}

/* The sum of a product with its bias, when there is one, as the output wants it. */
BT_INLINE void bt_finish(void *y, int y_type, int64_t index, float value, const void *bias, int bias_type,
                         int64_t row) {
    bt_store(y, y_type, index, bias ? value + bt_load(bias, bias_type, row) : value);
}

#endif
