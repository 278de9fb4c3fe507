/* mma.sync.m16n8k32 of bytes and m16n8k16 of halves, d = a b + c. Lane 4 g + t holds of a 16 x 8 per, b 8 per x 8 and
 * of c and d 16 x 8, `per` being 4 for bytes and 2 for halves,
 *
 *   register i of a, element j    row g + 8 (i & 1), column 4 per (i >> 1) + per t + j
 *   register i of b, element j    row 4 per i + per t + j, column g
 *   register i of c and d         row g + 8 (i >> 1), column 2 t + (i & 1) */
#include "ptx.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "../../csrc/kernels/cpu/half.h"

namespace ptx {

bool truncate_sums;

/* As tensor cores have been measured to add: products aligned to the largest exponent and cut below 26 bits. */
static float truncated_sum(const double *terms, int count) {
    double most = 0.0, sum = 0.0;
    for (int i = 0; i < count; i++) {
        most = std::max(most, std::fabs(terms[i]));
        sum += terms[i];
    }
    if (most == 0.0 || !std::isfinite(sum))
        return (float)sum;
    int exponent;
    std::frexp(most, &exponent);
    const double unit = std::ldexp(1.0, exponent - 26);
    sum = 0.0;
    for (int i = 0; i < count; i++)
        sum += std::trunc(terms[i] / unit) * unit;
    std::frexp(sum, &exponent);
    const double last = std::ldexp(1.0, exponent - 24);
    return (float)(std::trunc(sum / last) * last);
}

static float float_sum(float c, const double *products) {
    double terms[17];
    if (!truncate_sums) {
        double sum = c;
        for (int k = 0; k < 16; k++)
            sum += products[k];
        return (float)sum;
    }
    for (int half = 0; half < 2; half++) {
        std::copy(products + 8 * half, products + 8 * half + 8, terms);
        terms[8] = c;
        c = truncated_sum(terms, 9);
    }
    return c;
}

static double element(const Instruction &at, Word word, int j) {
    if (at.number == 4)
        return (int8_t)(word >> (8 * j));
    const uint16_t bits = (uint16_t)(word >> (16 * j));
    return at.opcode.find(".f16.f16") != std::string::npos ? bt_from_f16(bits) : bt_from_bf16(bits);
}

void multiply(const Instruction &at, Fragments &fragments) {
    const int per = at.number, depth = 8 * per;
    double a[16][32], b[8][32]; /* b by columns */
    uint32_t undefined_rows = 0, undefined_columns = 0;
    for (int lane = 0; lane < WARP; lane++) {
        const int g = lane / 4, t = lane % 4;
        for (int i = 0; i < 4; i++)
            for (int j = 0; j < per; j++)
                a[g + 8 * (i & 1)][4 * per * (i >> 1) + per * t + j] = element(at, fragments.in[i][lane], j);
        for (int i = 0; i < 2; i++)
            for (int j = 0; j < per; j++)
                b[g][4 * per * i + per * t + j] = element(at, fragments.in[4 + i][lane], j);
        for (int i = 0; i < 4; i++)
            undefined_rows |= (fragments.undefined_in[i] >> lane & 1) << (g + 8 * (i & 1));
        for (int i = 0; i < 2; i++)
            undefined_columns |= (fragments.undefined_in[4 + i] >> lane & 1) << g;
    }
    for (int i = 0; i < 4; i++) {
        fragments.undefined_out[i] = fragments.undefined_in[6 + i];
        for (int lane = 0; lane < WARP; lane++) {
            const int row = lane / 4 + 8 * (i >> 1), column = 2 * (lane % 4) + (i & 1);
            double products[32], exact = 0.0;
            for (int k = 0; k < depth; k++)
                exact += products[k] = a[row][k] * b[column][k];
            const uint32_t bits = (uint32_t)fragments.in[6 + i][lane];
            fragments.out[i][lane] =
                per == 4 ? bits + (uint32_t)(int32_t)exact : bt_float_bits(float_sum(bt_bits_float(bits), products));
            fragments.undefined_out[i] |= ((undefined_rows >> row | undefined_columns >> column) & 1) << lane;
        }
    }
}

} // namespace ptx
