#include "launch.h"
#include "ops.h"

namespace bittorch {

at::Tensor ternary_unpack(const at::Tensor &w_packed, const std::optional<at::Tensor> &scale, int64_t in_features,
                          at::ScalarType dtype) {
    check_packed(w_packed, in_features);
    const int64_t n = w_packed.size(0), k = in_features;
    ScaleLayout layout{0, k};
    if (scale) {
        TORCH_CHECK_TYPE(dtype != at::kChar, "a scaled result must be floating, got dtype=int8; leave out scale");
        check_same_device({{"w_packed", &w_packed}, {"scale", &*scale}});
        layout = check_scale(*scale, n, k);
    }
    const c10::DeviceGuard guard(w_packed.device());
    const at::Tensor rows = as_rows(w_packed, "w_packed");
    const at::Tensor scales = scale ? scale->contiguous() : at::Tensor();
    at::Tensor y = empty({n, k}, w_packed.options().dtype(dtype));

    bt_ternary_unpack p{};
    p.y_type = element_type(y, "dtype");
    const bt_kernel &kernel = find_kernel(BT_OP_ternary_unpack, device_kind(w_packed, "w_packed"), p.y_type, "auto");
    if (y.numel() == 0)
        return y;
    p.w = rows.const_data_ptr<uint8_t>();
    p.scale = scale ? scales.const_data_ptr<float>() : nullptr;
    p.y = y.mutable_data_ptr();
    p.n = n, p.k = k, p.ldw = rows.stride(0), p.ldy = k, p.lds = layout.lds, p.group = layout.group;
    launch(kernel, p, n, work_of({n, k}));
    return y;
}

} // namespace bittorch
