// Sizes that follow from what a caller gives: int64 arithmetic that raises ValueError instead of wrapping.
#pragma once

#include <c10/util/ArrayRef.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <optional>

namespace bittorch {

using Sizes = std::initializer_list<int64_t>;

// The product of sizes, none of them negative; nothing where it exceeds int64. A zero among them makes it zero.
inline std::optional<int64_t> product_of(Sizes factors) {
    if (std::find(factors.begin(), factors.end(), 0) != factors.end())
        return 0;
    int64_t product = 1;
    for (const int64_t factor : factors)
        if (__builtin_mul_overflow(product, factor, &product))
            return std::nullopt;
    return product;
}

inline int64_t size_product(const char *what, Sizes factors) {
    const std::optional<int64_t> product = product_of(factors);
    TORCH_CHECK_VALUE(product, what, " must be below 2^63, got the product of ", c10::IntArrayRef(factors));
    return *product;
}

inline int64_t size_sum(const char *what, Sizes terms) {
    int64_t sum = 0;
    for (const int64_t term : terms)
        TORCH_CHECK_VALUE(!__builtin_add_overflow(sum, term, &sum), what, " must be below 2^63, got the sum of ",
                          c10::IntArrayRef(terms));
    return sum;
}

// ceil(a / b) of any a that is not negative; bt_div_up() wraps where a + b does.
inline int64_t div_up(int64_t a, int64_t b) {
    return a / b + (a % b != 0);
}

// The smallest multiple of `step` that is not less than `size`.
inline int64_t padded_size(const char *what, int64_t size, int64_t step) {
    return size_product(what, {div_up(size, step), step});
}

// How much work a call is, for who decides about threads: the largest int64 stands for all that exceeds it.
inline int64_t work_of(Sizes factors) {
    return product_of(factors).value_or(std::numeric_limits<int64_t>::max());
}

} // namespace bittorch
