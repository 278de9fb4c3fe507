#include "launch.h"
#include "ops.h"

#include <climits>

namespace bittorch {

// On a CPU alone: on CUDA it would wait for the device, and the kernel answers with NaN.
static void check_indices(const at::Tensor &indices, int64_t rows) {
    const int64_t *const index = indices.const_data_ptr<int64_t>();
    for (int64_t i = 0; i < indices.numel(); i++)
        TORCH_CHECK_INDEX(index[i] >= 0 && index[i] < rows, "indices must be from 0 to ", rows - 1, ", for ", rows,
                          " rows, got ", index[i], " at position ", i);
}

at::Tensor ternary_embedding(const at::Tensor &indices, const at::Tensor &w_packed, const at::Tensor &scale,
                             int64_t in_features, at::ScalarType dtype, int64_t depth) {
    TORCH_CHECK_TYPE(indices.scalar_type() == at::kLong || indices.scalar_type() == at::kInt,
                     "indices must be int64 or int32, got ", dtype_name(indices));
    check_packed(w_packed, in_features);
    check_same_device({{"indices", &indices}, {"w_packed", &w_packed}, {"scale", &scale}});
    TORCH_CHECK_VALUE(depth >= 1 && depth <= INT_MAX && w_packed.size(0) % depth == 0,
                      "depth must be the number of planes in w_packed, which has ", w_packed.size(0), " rows, got ",
                      depth);
    const ScaleLayout layout = check_scale(scale, w_packed.size(0), in_features);
    const c10::DeviceGuard guard(w_packed.device());
    const at::Tensor rows = as_rows(w_packed, "w_packed"), scales = scale.contiguous();
    const at::Tensor index = indices.to(at::kLong).contiguous();
    at::DimVector sizes(indices.sizes());
    sizes.push_back(in_features);
    at::Tensor y = empty(sizes, w_packed.options().dtype(dtype));

    bt_ternary_embedding p{};
    p.y_type = float_type(y, "dtype");
    const bt_kernel &kernel = find_kernel(BT_OP_ternary_embedding, device_kind(w_packed, "w_packed"), p.y_type, "auto");
    p.m = index.numel(), p.n = w_packed.size(0) / depth, p.k = in_features, p.depth = static_cast<int>(depth);
    if (kernel.device == BT_CPU)
        check_indices(index, p.n);
    if (y.numel() == 0)
        return y;
    p.index = index.const_data_ptr<int64_t>();
    p.w = rows.const_data_ptr<uint8_t>();
    p.scale = scales.const_data_ptr<float>();
    p.y = y.mutable_data_ptr();
    p.ldw = rows.stride(0), p.ldy = p.k, p.lds = layout.lds, p.group = layout.group;
    launch(kernel, p, p.m, work_of({p.m, p.k, depth}));
    return y;
}

} // namespace bittorch
