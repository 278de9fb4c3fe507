#include "by_torch.h"
#include "int8_activations.h"
#include "no_gradient.h"
#include "ops.h"

namespace bittorch {

at::Tensor linear_i8(const at::Tensor &x, const at::Tensor &weight, const at::Tensor &scale,
                     const std::optional<at::Tensor> &bias, int64_t activation_bits, const std::string &variant) {
    bt_linear_i8 p{};
    const int x_type = float_type(x, "x"), device = device_kind(x, "x");
    TORCH_CHECK_TYPE(weight.scalar_type() == at::kChar, "weight must be int8, got ", dtype_name(weight));
    TORCH_CHECK_TYPE(scale.scalar_type() == at::kFloat, "scale must be float32, got ", dtype_name(scale));
    const at::Tensor rows = as_rows(x, "x");
    TORCH_CHECK_VALUE(weight.dim() == 2 && weight.size(1) == x.size(-1), "weight must be (out_features, ", x.size(-1),
                      ") for x of ", x.sizes(), ", got ", weight.sizes());
    p.m = rows.size(0), p.n = weight.size(0), p.k = rows.size(1);
    TORCH_CHECK_VALUE(scale.dim() == 1 && scale.size(0) == p.n, "scale must be (", p.n, ",), one a row, got ",
                      scale.sizes());
    TORCH_CHECK_VALUE(p.k <= BT_I8_MAX_K, "in_features must be at most ", int64_t{BT_I8_MAX_K},
                      " for int32 sums of int8 weights, got ", p.k);
    check_bias(bias, p.n);
    check_same_device({{"x", &x}, {"weight", &weight}, {"scale", &scale}, {"bias", or_null(bias)}});
    p.digits = digit_count(activation_bits, "activation_bits");
    check_no_gradient("linear_i8", {&x, &scale, or_null(bias)});
    const c10::DeviceGuard guard(x.device());
    if (device == BT_GPU || variant == "matmul")
        return multiply_int8(x, weight, scale, bias, activation_bits);
    const bt_kernel &kernel = find_kernel(BT_OP_linear_i8, device, BT_I8, variant);
    at::Tensor y = empty(with_last(x, p.n), x.options());
    if (y.numel() == 0)
        return y;
    const at::Tensor w = as_rows(weight, "weight"), scales = scale.contiguous();
    const at::Tensor biases = bias ? bias->contiguous() : at::Tensor();
    p.w = w.const_data_ptr<int8_t>();
    p.scale = scales.const_data_ptr<float>();
    set_bias(p, biases);
    p.y = y.mutable_data_ptr(), p.y_type = x_type;
    p.ldw = w.stride(0), p.ldy = p.n;
    multiply_quantized(kernel, p, Activations{rows, nullptr, x_type, at::Tensor(), 0.0}, BT_ORDER_NATURAL);
    return y;
}

} // namespace bittorch
