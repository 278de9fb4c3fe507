// What the ops that decode bytes of files into packed rows of the caller check alike.
#pragma once

#include "checks.h"
#include "sizes.h"

#include <ATen/EmptyTensor.h>

namespace bittorch {

// Files are decoded on a CPU.
inline void check_on_cpu(const at::Tensor &t, const char *name) {
    TORCH_CHECK_NOT_IMPLEMENTED(!t.is_cuda(), name, " must be on the cpu, where files are decoded, got ", t.device());
}

// The layout of that name; raises with the names that there are.
template <typename Layout, size_t Count>
const Layout &layout_of(const Layout (&layouts)[Count], const std::string &name) {
    std::string known;
    for (size_t i = 0; i < Count; i++) {
        if (name == layouts[i].name)
            return layouts[i];
        known += std::string(i == 0 ? "" : i + 1 < Count ? ", " : " or ") + "'" + layouts[i].name + "'";
    }
    TORCH_CHECK_VALUE(false, "layout must be ", known, ", got '", name, "'");
}

// Bytes of a file: rows of k weights, of which a layout stores `weights` in `bytes`, in `whole` blocks or not. `rows`
// is what messages call them.
template <typename Layout>
void check_data(const at::Tensor &data, const char *rows, int64_t k, const Layout &layout, bool whole) {
    TORCH_CHECK_TYPE(data.scalar_type() == at::kByte, "data must be uint8, got ", dtype_name(data));
    TORCH_CHECK_VALUE(k >= 0, "in_features must not be negative, got ", k);
    TORCH_CHECK_VALUE(!whole || k % layout.weights == 0, "in_features must be a multiple of ", layout.weights,
                      " for layout='", layout.name, "', got ", k);
    const int64_t bytes = size_product("bytes of a row", {div_up(k, layout.weights), layout.bytes});
    TORCH_CHECK_VALUE(data.dim() == 2 && data.size(1) == bytes, "data must be (", rows, ", ", bytes,
                      ") uint8 for in_features=", k, " and layout='", layout.name, "', got ", data.sizes());
    check_on_cpu(data, "data");
}

// Whether the memory from the first to the last byte of a meets that of b. Rows of both that interleave in one buffer
// count as meeting: at::assert_no_overlap lets all tensors with gaps pass.
inline bool spans_meet(const at::Tensor &a, const at::Tensor &b) {
    const auto *first_a = static_cast<const uint8_t *>(a.const_data_ptr());
    const auto *first_b = static_cast<const uint8_t *>(b.const_data_ptr());
    return first_a < first_b + at::detail::computeStorageNbytes(b.sizes(), b.strides(), 1) &&
           first_b < first_a + at::detail::computeStorageNbytes(a.sizes(), a.strides(), 1);
}

// A tensor that is written to: (n, ceil(k / 4)) uint8 on the device of data and apart from it, rows in one piece.
inline void check_written(const at::Tensor &t, const char *name, const at::Tensor &data, int64_t n, int64_t k) {
    TORCH_CHECK_TYPE(t.scalar_type() == at::kByte, name, " must be uint8, got ", dtype_name(t));
    TORCH_CHECK_VALUE(t.dim() == 2 && t.size(0) == n && t.size(1) == div_up(k, 4), name, " must be (", n, ", ",
                      div_up(k, 4), ") uint8 for in_features=", k, " and data of ", data.sizes(), ", got ", t.sizes());
    TORCH_CHECK_VALUE(t.size(1) <= 1 || t.stride(1) == 1, "the bytes of a row of ", name,
                      " must lie side by side, got strides ", t.strides());
    check_on_cpu(t, name);
    check_same_device({{"data", &data}, {name, &t}});
    TORCH_CHECK_VALUE(t.size(0) <= 1 || t.stride(0) >= t.size(1), "the rows of ", name,
                      " must not overlap, got strides ", t.strides(), " for ", t.sizes());
    TORCH_CHECK_VALUE(!spans_meet(data, t), name, " must lie apart from data, but the two share a stretch of memory");
    if (!t.is_inference())
        t.unsafeGetTensorImpl()->bump_version();
}

} // namespace bittorch
