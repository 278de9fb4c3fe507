/* mma.sync.m16n8k32 of bytes and m16n8k16 of halves, d = a b + c. Lane 4 g + t holds of a 16 x 8 per, b 8 per x 8 and
 * of c and d 16 x 8, `per` being 4 for bytes and 2 for halves,
 *
 *   register i of a, element j    row g + 8 (i & 1), column 4 per (i >> 1) + per t + j
 *   register i of b, element j    row 4 per i + per t + j, column g
 *   register i of c and d         row g + 8 (i >> 1), column 2 t + (i & 1) */
#include "ptx.h"

#include <algorithm>
#include <cmath>

#include "../../csrc/kernels/cpu/half.h"

namespace ptx {

bool truncate_sums;

/* As tensor cores have been measured to add: products aligned to the largest exponent and cut below 26 bits. */
static float truncated_sum(float c, const double *products) {
    double most = std::fabs(c), sum = c;
    for (int i = 0; i < 8; i++) {
        most = std::max(most, std::fabs(products[i]));
        sum += products[i];
    }
    if (most == 0.0 || !std::isfinite(sum))
        return (float)sum;
    int exponent;
    std::frexp(most, &exponent);
    const double unit = std::ldexp(1.0, exponent - 26);
    sum = std::trunc(c / unit) * unit;
    for (int i = 0; i < 8; i++)
        sum += std::trunc(products[i] / unit) * unit;
    std::frexp(sum, &exponent);
    const double last = std::ldexp(1.0, exponent - 24);
    return (float)(std::trunc(sum / last) * last);
}

static double element(int elements, Word word, int j) {
    const uint16_t half = (uint16_t)(word >> (16 * j));
    return elements == BYTES ? (int8_t)(word >> (8 * j)) : elements == HALVES ? bt_from_f16(half) : bt_from_bf16(half);
}

static uint32_t sum_of(int elements, uint32_t c, const double *products) {
    double sum = elements == BYTES ? 0.0 : (double)bt_bits_float(c);
    for (int k = 0; k < (elements == BYTES ? 32 : 16); k++)
        sum += products[k];
    if (elements == BYTES)
        return c + (uint32_t)(int32_t)sum;
    return bt_float_bits(truncate_sums ? truncated_sum(truncated_sum(bt_bits_float(c), products), products + 8)
                                       : (float)sum);
}

/* A row of d is undefined where one of a is, and a column where one of b is. */
void multiply(Warp &warp, const Instruction &at) {
    const int per = at.number == BYTES ? 4 : 2;
    double a[16][32], b[8][32], products[32]; /* b by columns */
    uint32_t undefined_rows = 0, undefined_columns = 0;
    for (int lane = 0; lane < WARP; lane++)
        for (int i = 0; i < 6; i++) {
            const int g = lane / 4, t = lane % 4, row = g + 8 * (i & 1), far = i < 4 ? i >> 1 : i - 4;
            for (int j = 0; j < per; j++)
                (i < 4 ? a[row] : b[g])[4 * per * far + per * t + j] =
                    element(at.number, warp.values(at.in[(size_t)i])[lane], j);
            const uint32_t undefined = warp.undefined[at.in[(size_t)i]] >> lane & 1;
            (i < 4 ? undefined_rows : undefined_columns) |= undefined << (i < 4 ? row : g);
        }
    uint32_t sums[4][WARP], undefined[4];
    for (int i = 0; i < 4; i++) {
        undefined[i] = warp.undefined[at.in[6 + (size_t)i]];
        for (int lane = 0; lane < WARP; lane++) {
            const int row = lane / 4 + 8 * (i >> 1), column = 2 * (lane % 4) + (i & 1);
            for (int k = 0; k < 8 * per; k++)
                products[k] = a[row][k] * b[column][k];
            sums[i][lane] = sum_of(at.number, (uint32_t)warp.values(at.in[6 + (size_t)i])[lane], products);
            undefined[i] |= ((undefined_rows >> row | undefined_columns >> column) & 1) << lane;
        }
    }
    for (size_t i = 0; i < 4; i++) {
        std::copy(sums[i], sums[i] + WARP, warp.values(at.out[i]));
        warp.define(at.out[i], ~0u, undefined[i]);
    }
}

} // namespace ptx
