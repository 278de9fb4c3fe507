#include "implement.h"
#include "launch.h"

#include <ATen/ops/empty.h>

namespace bittorch {

// Rows of codes that are made at once: bounds the scratch whatever the batch.
constexpr int64_t code_rows = 4096;

// The activations as the call gives them: floating, or int8 codes with one scale a token.
struct Activations {
    at::Tensor rows;
    const float *scale; // nullptr for floating rows
    int type;
    at::Tensor norm_weight; // undefined without a norm
    double norm_eps;
};

static bt_act_quantize quantize_params(const Activations &x, int digits, int64_t first, int64_t count) {
    bt_act_quantize a{};
    a.digits = digits;
    a.x = static_cast<const char *>(x.rows.const_data_ptr()) + first * x.rows.stride(0) * x.rows.element_size();
    a.x_type = x.type;
    a.m = count, a.k = x.rows.size(1), a.ldx = x.rows.stride(0);
    set_norm(a, x.norm_weight, x.norm_eps);
    return a;
}

// Where the scales of the tokens go: float for one digit, double for more.
static void set_scales(bt_act_quantize &a, void *scales) {
    a.scale = a.digits == 1 ? static_cast<float *>(scales) : nullptr;
    a.step = a.digits == 1 ? nullptr : static_cast<double *>(scales);
}

static void quantize(const bt_kernel &kernel, const bt_act_quantize &a) {
    launch(kernel, a, a.m, work_of({a.m, a.digits, a.k}));
}

static void multiply(const bt_kernel &kernel, const bt_ternary_linear_w2a8 &p) {
    launch(kernel, p, bt_tiles(p.m, p.n), work_of({p.m, p.n, p.digits, p.k}) / 4);
}

static void run_on_cpu(const bt_kernel &kernel, const bt_ternary_linear_w2a8 &all, const Activations &x) {
    const bt_kernel &quantizer = find_kernel(BT_OP_act_quantize, BT_CPU, x.type, "auto");
    const int64_t y_bytes = all.y_type == BT_F32 ? 4 : 2, token_block = code_rows / all.digits;
    const int64_t tokens = std::min(all.m, token_block);
    bt_ternary_linear_w2a8 p = all;
    p.ldq = padded_size("columns", p.k, BT_ACT_BLOCK);
    const int64_t rows = p.digits * tokens;
    Scratch scratch(Scratch::bytes_of<int8_t>(rows * p.ldq) + Scratch::bytes_of<double>(tokens) +
                    Scratch::bytes_of<int32_t>(rows));
    int8_t *const codes = scratch.take<int8_t>(rows * p.ldq);
    double *const scales = scratch.take<double>(tokens);
    int32_t *const sums = scratch.take<int32_t>(rows);
    for (int64_t first = 0; first < all.m; first += token_block) {
        p.m = std::min(token_block, all.m - first);
        bt_act_quantize a = quantize_params(x, p.digits, first, p.m);
        a.order = BT_ORDER_PLANES, a.ldq = p.ldq;
        a.q = codes, a.sum = sums;
        set_scales(a, scales);
        p.q = a.q, p.q_sum = a.sum, p.q_scale = x.scale ? x.scale + first : a.scale, p.q_step = a.step;
        p.y = static_cast<char *>(all.y) + first * all.ldy * y_bytes;
        quantize(quantizer, a);
        multiply(kernel, p);
    }
}

static void run_on_gpu(const bt_kernel &kernel, bt_ternary_linear_w2a8 p, const Activations &x) {
    const Workspace workspace(bt_ternary_linear_w2a8_cuda_workspace(&p), x.rows);
    p.workspace = workspace.data(), p.workspace_bytes = workspace.bytes();
    if (x.type == BT_I8) {
        p.q = static_cast<const int8_t *>(x.rows.const_data_ptr()), p.ldq = x.rows.stride(0), p.q_scale = x.scale;
        return multiply(kernel, p);
    }
    const bt_kernel &quantizer = find_kernel(BT_OP_act_quantize, BT_GPU, x.type, "auto");
    const int64_t ldq = padded_size("columns", p.k, 16); // rows that loads of 16 bytes can read
    const at::Tensor codes = at::empty({p.digits * p.m, ldq}, x.rows.options().dtype(at::kChar));
    const at::Tensor scales = at::empty({p.m}, x.rows.options().dtype(p.digits == 1 ? at::kFloat : at::kDouble));
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
    check_same_device({{"x", &x}, {"w_packed", &w_packed}, {"scale", &scale}});
    if (bias)
        check_same_device({{"x", &x}, {"bias", &*bias}});
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
    at::Tensor y = at::empty(with_last(x, p.n), x.options().dtype(out_dtype.value_or(x.scalar_type())));
    p.y_type = float_type(y, "out_dtype");
    if (y.numel() == 0)
        return y;
    const at::Tensor w_rows = aligned_rows(w, kernel);
    p.w = w_rows.const_data_ptr<uint8_t>();
    p.scale = scales.const_data_ptr<float>();
    p.bias = bias ? biases.const_data_ptr() : nullptr;
    p.bias_type = bias ? float_type(*bias, "bias") : BT_F32;
    p.y = y.mutable_data_ptr();
    p.ldw = w_rows.stride(0), p.ldy = p.n, p.lds = layout.lds, p.group = layout.group;
    const bool codes_given = x_type == BT_I8;
    const Activations activations{codes_given ? aligned_rows(rows, kernel) : rows,
                                  x_scale ? x_scales.const_data_ptr<float>() : nullptr, x_type,
                                  norm_weight ? norm_weight->contiguous() : at::Tensor(), norm_eps};
    kernel.device == BT_GPU ? run_on_gpu(kernel, p, activations) : run_on_cpu(kernel, p, activations);
    return y;
}

BT_IMPLEMENT(ternary_linear_w2a8)

} // namespace bittorch
