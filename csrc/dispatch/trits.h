// What the ops on packed trits check alike: one matrix of codes, or two of which either may be one row for all.
#pragma once

#include "checks.h"

namespace bittorch {

// (rows, ceil(columns / 4)) uint8, with unit stride inside a row.
inline at::Tensor trit_rows(const at::Tensor &t, int64_t columns, const char *name) {
    TORCH_CHECK_TYPE(t.scalar_type() == at::kByte, name, " must be uint8, got ", dtype_name(t));
    TORCH_CHECK_VALUE(columns >= 0, "columns must not be negative, got ", columns);
    TORCH_CHECK_VALUE(t.dim() == 2 && t.size(1) == div_up(columns, 4), name, " must be (rows, ", div_up(columns, 4),
                      ") uint8 for columns=", columns, ", got ", t.sizes());
    return as_rows(t, name);
}

// How many rows a function of `a` and `b` has; b may be undefined.
inline int64_t common_rows(const at::Tensor &a, const at::Tensor &b) {
    if (!b.defined() || b.size(0) == a.size(0) || b.size(0) == 1)
        return a.size(0);
    TORCH_CHECK_VALUE(a.size(0) == 1, "a and b must have as many rows, or one of them one, got ", a.size(0), " and ",
                      b.size(0));
    return b.size(0);
}

// Bytes from a row to the next, 0 for one row that stands for `rows`.
inline int64_t row_step(const at::Tensor &t, int64_t rows) {
    return t.size(0) == rows ? t.stride(0) : 0;
}

} // namespace bittorch
