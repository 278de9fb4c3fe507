#include "int8_activations.h"
#include "ops.h"

namespace bittorch {

static void run_on_gpu(const bt_kernel &kernel, bt_ternary_linear_w2a8 p, const Activations &x) {
    const Workspace workspace(bt_ternary_linear_w2a8_cuda_workspace(&p), x.rows);
    p.workspace = workspace.data(), p.workspace_bytes = workspace.bytes();
    if (x.type == BT_I8) {
        p.q = static_cast<const int8_t *>(x.rows.const_data_ptr()), p.ldq = x.rows.stride(0), p.q_scale = x.scale;
        return multiply(kernel, p);
    }
    const bt_kernel &quantizer = find_kernel(BT_OP_act_quantize, BT_GPU, x.type, "auto");
    const int64_t ldq = padded_size("columns", p.k, 16); // rows that loads of 16 bytes can read
    const at::Tensor codes = empty({p.digits * p.m, ldq}, x.rows.options().dtype(at::kChar));
    const at::Tensor scales = empty({p.m}, x.rows.options().dtype(p.digits == 1 ? at::kFloat : at::kDouble));
    bt_act_quantize a = quantize_params(x, p.digits, 0, p.m);
    a.order = p.q_order = kernel.reads & BT_READS_STRIDE4 ? BT_ORDER_STRIDE4 : BT_ORDER_NATURAL;
    a.ldq = p.ldq = ldq;
    a.q = static_cast<int8_t *>(codes.mutable_data_ptr());
    set_scales(a, scales.mutable_data_ptr());
    quantize(quantizer, a);
    p.q = a.q, p.q_scale = a.scale, p.q_step = a.step;
    multiply(kernel, p);
}

static void check_x_scale(const at::Tensor &x, const std::optional<at::Tensor> &x_scale,
                          std::optional<at::ScalarType> out_dtype, int64_t m, int digits) {
    if (x.scalar_type() != at::kChar) {
        TORCH_CHECK_VALUE(!x_scale, "x_scale goes with int8 x only, and x is ", dtype_name(x));
        return;
    }
    TORCH_CHECK_VALUE(digits == 1, "int8 x holds codes of 8 bits, but activation_bits is ", 8 * digits,
                      "; give x before it is quantised");
    TORCH_CHECK_VALUE(x_scale && out_dtype, "int8 x needs x_scale and out_dtype; act_quantize(x) gives the codes and "
                                            "the scale");
    TORCH_CHECK_TYPE(x_scale->scalar_type() == at::kFloat, "x_scale must be float32, got ", dtype_name(*x_scale));
    TORCH_CHECK_VALUE(x_scale->numel() == m, "x_scale must hold one scale a token, ", m, ", got ", x_scale->sizes());
    check_same_device({{"x", &x}, {"x_scale", &*x_scale}});
}

at::Tensor ternary_linear_w2a8(const at::Tensor &x, const at::Tensor &w_packed, const at::Tensor &scale,
                               const std::optional<at::Tensor> &bias, const std::optional<at::Tensor> &x_scale,
                               std::optional<at::ScalarType> out_dtype, int64_t activation_bits,
                               const std::string &variant, const std::optional<at::Tensor> &norm_weight,
                               double norm_eps) {
    const int x_type = element_type(x, "x");
    const int device = device_kind(x, "x");
    check_same_device({{"x", &x}, {"w_packed", &w_packed}, {"scale", &scale}, {"bias", or_null(bias)}});
    check_norm(norm_weight, norm_eps, x);
    const c10::DeviceGuard guard(x.device());
    const at::Tensor rows = as_rows(x, "x");
    bt_ternary_linear_w2a8 p{};
    p.m = rows.size(0), p.k = rows.size(1), p.n = w_packed.dim() == 2 ? w_packed.size(0) : 0;
    check_packed(w_packed, p.k);
    check_bias(bias, p.n);
    p.digits = digit_count(activation_bits, "activation_bits");
    check_x_scale(x, x_scale, out_dtype, p.m, p.digits);
    TORCH_CHECK_VALUE(p.k <= BT_W2A8_MAX_K, "in_features must be at most ", int64_t{BT_W2A8_MAX_K},
                      " for int32 sums of int8 activations, got ", p.k);
    const ScaleLayout layout = check_scale(scale, p.n, p.k);

    const at::Tensor w = as_rows(w_packed, "w_packed");
    const at::Tensor scales = scale.contiguous();
    const at::Tensor biases = bias ? bias->contiguous() : at::Tensor();
    const bt_problem problem = problem_of(p.m, p.n, p.k, layout.group, p.digits, false, device);
    const bt_kernel &kernel = find_kernel(BT_OP_ternary_linear_w2a8, device, BT_I8, variant, &problem);
    const at::Tensor x_scales = x_scale ? x_scale->contiguous() : at::Tensor();
    at::Tensor y = empty(with_last(x, p.n), x.options().dtype(out_dtype.value_or(x.scalar_type())));
    p.y_type = float_type(y, "out_dtype");
    if (y.numel() == 0)
        return y;
    const at::Tensor w_rows = aligned_rows(w, kernel);
    p.w = w_rows.const_data_ptr<uint8_t>();
    p.scale = scales.const_data_ptr<float>();
    set_bias(p, biases);
    p.y = y.mutable_data_ptr();
    p.ldw = w_rows.stride(0), p.ldy = p.n, p.lds = layout.lds, p.group = layout.group;
    const bool codes_given = x_type == BT_I8;
    const Activations activations{codes_given ? aligned_rows(rows, kernel) : rows,
                                  x_scale ? x_scales.const_data_ptr<float>() : nullptr, x_type,
                                  norm_weight ? norm_weight->contiguous() : at::Tensor(), norm_eps};
    if (kernel.device == BT_GPU)
        run_on_gpu(kernel, p, activations);
    else
        multiply_quantized(kernel, p, activations, BT_ORDER_PLANES);
    return y;
}

} // namespace bittorch
