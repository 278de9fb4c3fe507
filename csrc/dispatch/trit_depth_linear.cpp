#include "int8_activations.h"
#include "no_gradient.h"
#include "ops.h"

namespace bittorch {

at::Tensor trit_depth_linear(const at::Tensor &x, const at::Tensor &w_packed, const at::Tensor &scale,
                             const std::optional<at::Tensor> &bias, int64_t depth, int64_t activation_bits,
                             const std::string &variant, const std::optional<at::Tensor> &norm_weight,
                             double norm_eps) {
    bt_trit_depth_linear p{};
    const int x_type = float_type(x, "x");
    check_same_device({{"x", &x}, {"w_packed", &w_packed}, {"scale", &scale}, {"bias", or_null(bias)}});
    check_norm(norm_weight, norm_eps, x);
    const at::Tensor rows = as_rows(x, "x");
    p.m = rows.size(0), p.k = rows.size(1);
    check_packed(w_packed, p.k);
    TORCH_CHECK_VALUE(depth >= 1 && depth <= BT_MAX_DEPTH, "depth must be from 1 to ", int{BT_MAX_DEPTH}, ", got ",
                      depth);
    TORCH_CHECK_VALUE(w_packed.size(0) % depth == 0, "w_packed must have a multiple of depth=", depth, " rows, got ",
                      w_packed.size(0));
    TORCH_CHECK_VALUE(p.k <= BT_I8_MAX_K, "in_features must be at most ", int64_t{BT_I8_MAX_K},
                      " for int32 sums of int8 weights, got ", p.k);
    p.depth = static_cast<int>(depth), p.n = w_packed.size(0) / depth;
    check_bias(bias, p.n);
    const ScaleLayout layout = check_scale(scale, p.n, p.k);
    p.digits = digit_count(activation_bits, "activation_bits");
    check_no_gradient("trit_depth_linear", {&x, &scale, or_null(bias), or_null(norm_weight)});
    const bt_kernel &kernel = find_kernel(BT_OP_trit_depth_linear, device_kind(x, "x"), BT_I8, variant);
    at::Tensor y = empty(with_last(x, p.n), x.options());
    if (y.numel() == 0)
        return y;
    const at::Tensor w = as_rows(w_packed, "w_packed"), scales = scale.contiguous();
    const at::Tensor biases = bias ? bias->contiguous() : at::Tensor();
    p.w = w.const_data_ptr<uint8_t>();
    p.scale = scales.const_data_ptr<float>();
    set_bias(p, biases);
    p.y = y.mutable_data_ptr(), p.y_type = x_type;
    p.ldw = w.stride(0), p.plane = p.n * p.ldw, p.ldy = p.n, p.lds = layout.lds, p.group = layout.group;
    const Activations activations{rows, nullptr, x_type, norm_weight ? norm_weight->contiguous() : at::Tensor(),
                                  norm_eps};
    multiply_quantized(kernel, p, activations, BT_ORDER_PLANES, &bt_trit_depth_linear::memory,
                       bt_trit_depth_memory(p.k));
    return y;
}

} // namespace bittorch
