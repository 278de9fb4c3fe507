// What the ops that decode bytes of files into packed rows of the caller check alike.
#pragma once

#include "checks.h"
#include "sizes.h"

#include <ATen/MemoryOverlap.h>

namespace bittorch {

// Files are decoded on a CPU.
inline void check_on_cpu(const at::Tensor &t, const char *name) {
    TORCH_CHECK_NOT_IMPLEMENTED(!t.is_cuda(), name, " must be on the cpu, where files are decoded, got ", t.device());
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
    at::assert_no_internal_overlap(t);
    at::assert_no_overlap(data, t);
    if (!t.is_inference())
        t.unsafeGetTensorImpl()->bump_version();
}

} // namespace bittorch
