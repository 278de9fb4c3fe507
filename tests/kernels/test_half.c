/* The conversions of cpu/half.h: every 16-bit pattern, and the places where rounding turns. */
#include "../../csrc/kernels/cpu/half.h"
#include "harness.h"

#include <math.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

/* fp16 by its definition, in double. */
static double f16_value(unsigned h) {
    const int exponent = (int)(h >> 10 & 31u), fraction = (int)(h & 1023u);
    const double sign = h & 0x8000u ? -1.0 : 1.0;
    if (exponent == 31)
        return fraction ? (double)NAN : sign * (double)INFINITY;
    return sign * (exponent ? ldexp(1024 + fraction, exponent - 25) : ldexp(fraction, -24));
}

static double bf16_value(unsigned h) {
    const int exponent = (int)(h >> 7 & 255u), fraction = (int)(h & 127u);
    const double sign = h & 0x8000u ? -1.0 : 1.0;
    if (exponent == 255)
        return fraction ? (double)NAN : sign * (double)INFINITY;
    return sign * (exponent ? ldexp(128 + fraction, exponent - 134) : ldexp(fraction, -133));
}

static int same_double(double a, double b) {
    return (isnan(a) && isnan(b)) || (a == b && signbit(a) == signbit(b));
}

/* Between the neighbours h and h + 1, which have one sign: below the middle, on it and above it. */
static void check_between(unsigned h, double (*value)(unsigned), uint16_t (*narrow)(float), unsigned infinity) {
    const double low = value(h);
    const unsigned magnitude = h & 0x7fffu;
    /* Above the largest number the spacing goes on as if Inf were the next one. */
    const double high = magnitude + 1 == infinity ? 2.0 * low - value(h - 1) : value(h + 1);
    const float middle = (float)((low + high) / 2.0);
    check(narrow(nextafterf(middle, (float)low)) == h, "narrowing below the middle");
    check(narrow(nextafterf(middle, (float)(2.0 * high))) == h + 1, "narrowing above the middle");
    check(narrow(middle) == (h & 1u ? h + 1 : h), "narrowing of the middle");
}

static void check_against_compiler(float value) {
#if defined(__FLT16_MANT_DIG__)
    __extension__ typedef _Float16 compiler_half;
    const compiler_half expected = (compiler_half)value;
    uint16_t bits;
    memcpy(&bits, &expected, sizeof bits);
    const uint16_t got = bt_to_f16(value);
    check(got == bits || (isnan(f16_value(got)) && isnan(f16_value(bits))), "fp16 as the compiler narrows");
#else
    (void)value;
#endif
}

/* Where an fp32 subnormal is read and written as zero, as torch.set_flush_denormal(True) asks for. */
static void check_flush_to_zero(void) {
#if defined(__x86_64__)
    static uint32_t expected[65536];
    const unsigned mode = _mm_getcsr();
    set_context("flush to zero");
    for (unsigned h = 0; h < 65536; h++)
        expected[h] = bt_float_bits((float)f16_value(h));
    _MM_SET_FLUSH_ZERO_MODE(_MM_FLUSH_ZERO_ON);
    _MM_SET_DENORMALS_ZERO_MODE(_MM_DENORMALS_ZERO_ON);
    int agree = 1;
    for (unsigned h = 0; h < 65536; h++) {
        volatile uint16_t bits = (uint16_t)h; /* keeps the arithmetic behind the change of mode */
        const float value = bt_from_f16(bits);
        agree = agree && ((h & 0x7fffu) > 0x7c00u ? isnan(value) : bt_float_bits(value) == expected[h]);
        agree = agree && ((h & 0x7fffu) > 0x7c00u || bt_to_f16(value) == h);
    }
    _mm_setcsr(mode);
    check(agree, "fp16 there and back");
#endif
}

void test_half(void) {
    check_flush_to_zero();
    for (unsigned h = 0; h < 65536; h++) {
        set_context("pattern %04x", h);
        const uint16_t bits = (uint16_t)h;
        const float f16 = bt_from_f16(bits), bf16 = bt_from_bf16(bits);
        check(same_double((double)f16, f16_value(h)), "widening of fp16");
        check(same_double((double)bf16, bf16_value(h)), "widening of bf16");
        check(isnan(f16) ? isnan(bt_from_f16(bt_to_f16(f16))) : bt_to_f16(f16) == h, "fp16 there and back");
        check(isnan(bf16) ? isnan(bt_from_bf16(bt_to_bf16(bf16))) : bt_to_bf16(bf16) == h, "bf16 there and back");
        check_against_compiler(f16);
        check_against_compiler(bf16);
        if ((h & 0x7fffu) < 0x7c00u) {
            check_between(h, f16_value, bt_to_f16, 0x7c00u);
            check_against_compiler(nextafterf(f16, INFINITY));
            check_against_compiler(nextafterf(f16, -INFINITY));
        }
        if ((h & 0x7fffu) < 0x7f7fu) /* the middle above the largest is not an fp32 below Inf by the same rule */
            check_between(h, bf16_value, bt_to_bf16, 0x7f80u);
    }
    for (int i = 0; i < 200000; i++) {
        const float value = bt_bits_float(random_bits());
        set_context("fp32 %08x", bt_float_bits(value));
        check_against_compiler(value);
        check(!isnan(value) || isnan(bt_from_bf16(bt_to_bf16(value))), "NaN stays NaN");
    }
    set_context("bf16 overflow");
    check(bt_to_bf16(bt_bits_float(0x7f7f7fffu)) == 0x7f7fu, "below the middle");
    check(bt_to_bf16(bt_bits_float(0x7f7f8000u)) == 0x7f80u, "the middle");
}
