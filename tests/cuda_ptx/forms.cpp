/* What each instruction computes in a lane. To add one, add a line: its opcode as PTX has it, and a function of the
 * operands by their types. Memory, branches and what needs a whole warp are in parse.cpp and exec.cpp. */
#include "ptx.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <sstream>
#include <type_traits>
#include <unordered_map>
#include <utility>

namespace ptx {

static std::unordered_map<std::string, Form> forms;
static bool divided_by_zero;

bool take_division_by_zero() {
    return std::exchange(divided_by_zero, false);
}

template <class T> static T as(Word word) {
    if constexpr (std::is_integral_v<T>)
        return std::is_same_v<T, bool> ? word & 1 : (T)word;
    T value;
    memcpy((void *)&value, &word, sizeof value);
    return value;
}

template <class T> static Word to_word(T value) {
    if constexpr (std::is_integral_v<T>)
        return (Word)value; /* extended by its sign, or by zeros */
    Word word = 0;
    memcpy(&word, &value, sizeof value);
    return word;
}

template <class F, class R, class... A, size_t... I>
static constexpr Form form_of(R (F::*)(A...) const, std::index_sequence<I...>) {
    return {[](const Word *const *in, Word *out, uint32_t mask) {
                for (int lane = 0; lane < WARP; lane++)
                    if (mask >> lane & 1)
                        out[lane] = to_word<R>(F{}(as<A>(in[I][lane])...));
            },
            sizeof...(A)};
}
template <class F, class R, class... A> static constexpr Form form_of(R (F::*call)(A...) const) {
    return form_of<F>(call, std::index_sequence_for<A...>());
}

/* Opcodes, with spaces between them, that all compute the same. */
template <class F> static void add(const std::string &opcodes, F) {
    std::istringstream words(opcodes);
    for (std::string opcode; words >> opcode;)
        forms[opcode] = form_of<F>(&F::operator());
}

template <class T> static T quotient(T a, T b) {
    divided_by_zero |= b == 0;
    return b == 0 ? T(0) : std::is_signed_v<T> && b == T(-1) ? T(0 - (std::make_unsigned_t<T>)a) : T(a / b);
}

template <class T> static T shift_right(T a, uint32_t by) {
    const uint32_t bits = 8 * sizeof(T);
    return by < bits ? T(a >> by) : T(a < 0 ? -1 : 0);
}

/* A float becomes an integer: out of range, the nearest one; NaN, 0. */
template <class T, class F> static T saturate(F value) {
    const F least = (F)std::numeric_limits<T>::min(), most = (F)std::numeric_limits<T>::max();
    return std::isnan(value) ? T(0)
           : value <= least  ? std::numeric_limits<T>::min()
           : value >= most   ? std::numeric_limits<T>::max()
                             : T(value);
}

template <class T> static void comparisons(const std::string &t) {
    add("setp.eq." + t, [](T a, T b) { return a == b; });
    add("setp.ne." + t, [](T a, T b) { return a < b || a > b; });
    add("setp.lt." + t, [](T a, T b) { return a < b; });
    add("setp.le." + t, [](T a, T b) { return a <= b; });
    add("setp.gt." + t, [](T a, T b) { return a > b; });
    add("setp.ge." + t, [](T a, T b) { return a >= b; });
}

template <class T> static void bits(const std::string &t) {
    add("and." + t, [](T a, T b) { return T(a & b); });
    add("or." + t, [](T a, T b) { return T(a | b); });
    add("xor." + t, [](T a, T b) { return T(a ^ b); });
    add("not." + t, [](T a) { return T(a ^ T(-1)); });
    add("mov." + t, [](T a) { return a; });
    if constexpr (!std::is_same_v<T, bool>) {
        add("shl." + t, [](T a, uint32_t by) { return by < 8 * sizeof(T) ? T(a << by) : T(0); });
        add("shr." + t, [](T a, uint32_t by) { return shift_right(a, by); });
        comparisons<T>(t);
    }
    if constexpr (sizeof(T) >= 4) /* the lowest bits of a, so many, at a bit of b; of both numbers 8 bits count */
        add("bfi." + t, [](T a, T b, uint32_t at, uint32_t length) {
            const uint32_t size = 8 * sizeof(T), from = at & 255, count = length & 255;
            const T low = count < size ? T((T(1) << count) - 1) : T(-1);
            return from < size ? T((b & ~(low << from)) | (a & low) << from) : b;
        });
}

template <class T> static void integers(const std::string &t) {
    typedef std::make_unsigned_t<T> U; /* overflow wraps */
    add("add." + t, [](U a, U b) { return U(a + b); });
    add("sub." + t, [](U a, U b) { return U(a - b); });
    add("mul.lo." + t, [](U a, U b) { return U((uint64_t)a * b); });
    add("mad.lo." + t, [](U a, U b, U c) { return U((uint64_t)a * b + c); });
    add("div." + t, [](T a, T b) { return quotient(a, b); });
    add("rem." + t, [](T a, T b) { return T(a - quotient(a, b) * b); });
    add("min." + t, [](T a, T b) { return a < b ? a : b; });
    add("max." + t, [](T a, T b) { return a > b ? a : b; });
    add("neg." + t, [](U a) { return U(0 - a); });
    add("abs." + t, [](T a) { return a < 0 ? U(0 - U(a)) : U(a); });
    add("shr." + t, [](T a, uint32_t by) { return shift_right(a, by); });
    add("mov." + t, [](T a) { return a; });
    comparisons<T>(t);
}

template <class Wide, class T> static void widening(const std::string &t) {
    add("mul.wide." + t, [](T a, T b) { return Wide((Wide)a * b); });
    add("mad.wide." + t, [](T a, T b, Wide c) { return Wide((Word)((Wide)a * b) + (Word)c); });
    add("mul.hi." + t, [](T a, T b) { return T((Wide)a * b >> 8 * sizeof(T)); });
}

template <class T> static void floats(const std::string &t) {
    add("add.rn." + t, [](T a, T b) { return a + b; });
    add("sub.rn." + t, [](T a, T b) { return a - b; });
    add("mul.rn." + t, [](T a, T b) { return a * b; });
    add("div.rn." + t, [](T a, T b) { return a / b; });
    add("fma.rn." + t, [](T a, T b, T c) { return std::fma(a, b, c); });
    add("sqrt.rn." + t, [](T a) { return std::sqrt(a); });
    add("rcp.rn." + t, [](T a) { return T(1) / a; });
    add("min." + t, [](T a, T b) { return std::fmin(a, b); });
    add("max." + t, [](T a, T b) { return std::fmax(a, b); });
    add("neg." + t, [](T a) { return -a; });
    add("abs." + t, [](T a) { return std::fabs(a); });
    add("mov." + t, [](T a) { return a; });
    add("cvt.rni." + t + "." + t, [](T a) { return std::nearbyint(a); });
    comparisons<T>(t);
    add("setp.equ." + t, [](T a, T b) { return !(a < b || a > b); });
    add("setp.neu." + t, [](T a, T b) { return !(a == b); });
    add("setp.ltu." + t, [](T a, T b) { return !(a >= b); });
    add("setp.leu." + t, [](T a, T b) { return !(a > b); });
    add("setp.gtu." + t, [](T a, T b) { return !(a <= b); });
    add("setp.geu." + t, [](T a, T b) { return !(a < b); });
}

template <class To, class From> static void conversion(const std::string &to, const std::string &from) {
    const std::string types = "." + to + "." + from;
    if constexpr (std::is_integral_v<To> && std::is_integral_v<From>)
        add("cvt" + types, [](From a) { return To(a); });
    else if constexpr (std::is_integral_v<From>)
        add("cvt.rn" + types, [](From a) { return To(a); });
    else if constexpr (std::is_integral_v<To> && sizeof(To) >= 4) {
        add("cvt.rzi" + types, [](From a) { return saturate<To>(std::trunc(a)); });
        add("cvt.rni" + types, [](From a) { return saturate<To>(std::nearbyint(a)); });
    }
}

template <class To> static void conversions_to(const std::string &to) {
    conversion<To, uint8_t>(to, "u8"), conversion<To, int8_t>(to, "s8");
    conversion<To, uint16_t>(to, "u16"), conversion<To, int16_t>(to, "s16");
    conversion<To, uint32_t>(to, "u32"), conversion<To, int32_t>(to, "s32");
    conversion<To, uint64_t>(to, "u64"), conversion<To, int64_t>(to, "s64");
    conversion<To, float>(to, "f32"), conversion<To, double>(to, "f64");
}

static void conversions() {
    conversions_to<uint8_t>("u8"), conversions_to<int8_t>("s8");
    conversions_to<uint16_t>("u16"), conversions_to<int16_t>("s16");
    conversions_to<uint32_t>("u32"), conversions_to<int32_t>("s32");
    conversions_to<uint64_t>("u64"), conversions_to<int64_t>("s64");
    conversions_to<float>("f32"), conversions_to<double>("f64");
    add("cvt.f64.f32", [](float a) { return (double)a; });
    add("cvt.rn.f32.f64", [](double a) { return (float)a; });
    /* Global memory has the same addresses by name and generic. */
    add("cvta.to.global.u64 cvta.global.u64", [](uint64_t a) { return a; });
    add("cvta.to.shared.u64", [](uint64_t a) { return a - SHARED_WINDOW; });
    add("cvta.shared.u64", [](uint64_t a) { return a + SHARED_WINDOW; });
    add("cvta.to.local.u64", [](uint64_t a) { return a - LOCAL_WINDOW; });
    add("cvta.local.u64", [](uint64_t a) { return a + LOCAL_WINDOW; });
}

static void words() {
    add("prmt.b32", [](uint32_t a, uint32_t b, uint32_t selector) {
        const uint64_t bytes = (uint64_t)b << 32 | a;
        uint32_t result = 0;
        for (int i = 0; i < 4; i++) {
            const uint32_t choice = selector >> (4 * i) & 15, byte = bytes >> (8 * (choice & 7)) & 0xff;
            result |= (choice & 8 ? (byte & 0x80 ? 0xff : 0) : byte) << (8 * i); /* or its sign */
        }
        return result;
    });
    add("dp4a.s32.s32", [](uint32_t a, uint32_t b, uint32_t sum) {
        for (int i = 0; i < 32; i += 8)
            sum += (uint32_t)((int8_t)(a >> i) * (int8_t)(b >> i));
        return sum;
    });
}

static void fill() {
    bits<bool>("pred"), bits<uint16_t>("b16"), bits<uint32_t>("b32"), bits<uint64_t>("b64");
    integers<uint16_t>("u16"), integers<int16_t>("s16");
    integers<uint32_t>("u32"), integers<int32_t>("s32");
    integers<uint64_t>("u64"), integers<int64_t>("s64");
    widening<uint32_t, uint16_t>("u16"), widening<int32_t, int16_t>("s16");
    widening<uint64_t, uint32_t>("u32"), widening<int64_t, int32_t>("s32");
    floats<float>("f32"), floats<double>("f64");
    conversions();
    words();
}

const Form *find_form(const std::string &opcode) {
    if (forms.empty())
        fill();
    const auto found = forms.find(opcode);
    return found == forms.end() ? nullptr : &found->second;
}

} // namespace ptx
