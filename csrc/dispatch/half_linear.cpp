#include "launch.h"
#include "no_gradient.h"
#include "ops.h"

namespace bittorch {

at::Tensor half_linear(const at::Tensor &x, const at::Tensor &weight, const std::optional<at::Tensor> &bias) {
    bt_half_linear p{};
    float_type(x, "x");
    p.w_type = float_type(weight, "weight");
    TORCH_CHECK_TYPE(p.w_type != BT_F32, "weight must be float16 or bfloat16, got ", dtype_name(weight));
    TORCH_CHECK_VALUE(x.dim() >= 1, "x must have at least one dimension, got a scalar");
    TORCH_CHECK_VALUE(weight.dim() == 2 && weight.size(1) == x.size(-1), "weight must be (out_features, ", x.size(-1),
                      ") for x of ", x.sizes(), ", got ", weight.sizes());
    check_bias(bias, weight.size(0));
    check_same_device({{"x", &x}, {"weight", &weight}, {"bias", or_null(bias)}});
    check_no_gradient("half_linear", {&x, &weight, or_null(bias)});
    const bt_kernel &kernel = find_kernel(BT_OP_half_linear, device_kind(x, "x"), p.w_type, "auto");
    const at::Tensor tokens = as_rows(x.to(at::kFloat), "x"), rows = as_rows(weight, "weight");
    const at::Tensor biases = bias ? bias->contiguous() : at::Tensor();
    at::Tensor y = empty(with_last(x, rows.size(0)), x.options());
    if (y.numel() == 0)
        return y;
    p.x = tokens.const_data_ptr<float>();
    p.w = static_cast<const uint16_t *>(rows.const_data_ptr());
    set_bias(p, biases);
    p.y = y.mutable_data_ptr(), p.y_type = float_type(y, "x");
    p.m = tokens.size(0), p.n = rows.size(0), p.k = tokens.size(1);
    p.ldx = tokens.stride(0), p.ldw = rows.stride(0), p.ldy = p.n;
    launch(kernel, p, bt_tiles(p.m, p.n), work_of({p.m, p.n, p.k}));
    return y;
}

} // namespace bittorch
