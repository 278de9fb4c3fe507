// Gradients and autocast. Each op here is an autograd node in C++ that calls the ops of library.cpp below autograd,
// through the dispatcher, so that torch.compile sees them; codes and scales are saved, never the dense quantised
// weight.
//
//   forward   y = x @ (codes * scale)^T + bias                   codes, scale = ternary_quantize(weight)
//   backward  grad_x = g @ (codes * scale)     grad_bias = sum g     grad_weight = g^T @ Q(x)   (straight through the
//   quantiser)
//
// With an RMS norm of x in front, x = h * r, r = 1 / sqrt(mean(h^2) + eps), times the norm's weight, the gradient goes
// on through it:   grad_h = r * (u - x mean(u x))   with u = grad_x * weight of the norm.
//
// On a CPU grad_x is a packed product too, (g * scale) @ codes with the codes transposed; its activations are 24-bit
// digits where the layer's own are quantised. A scale per group is no factor of g, and cuBLAS is faster than what a
// CUDA kernel of ours would be: there the weight is decoded.
#include "autograd.h"

#include <ATen/ops/mm.h>
#include <torch/library.h>

#include <functional>

namespace bittorch {
namespace {

Tensor call_packed(const Tensor &x, const Tensor &w_packed, const Tensor &scale, const OptionalTensor &bias,
                   const std::string &variant) {
    static const auto op =
        find_op<Tensor(const Tensor &, const Tensor &, const Tensor &, const OptionalTensor &, const std::string &)>(
            "bittorch::ternary_linear_packed");
    return op.call(x, w_packed, scale, bias, variant);
}

// The RMS norm that x is to be taken through.
struct Norm {
    OptionalTensor weight;
    double eps = 1.0;
};

Tensor call_w2a8(const Tensor &x, const Tensor &w_packed, const Tensor &scale, const OptionalTensor &bias,
                 const OptionalTensor &x_scale, OptionalDtype out_dtype, int64_t bits, const std::string &variant,
                 const Norm &norm = {}) {
    static const auto op =
        find_op<Tensor(const Tensor &, const Tensor &, const Tensor &, const OptionalTensor &, const OptionalTensor &,
                       OptionalDtype, int64_t, const std::string &, const OptionalTensor &, double)>(
            "bittorch::ternary_linear_w2a8");
    return op.call(x, w_packed, scale, bias, x_scale, out_dtype, bits, variant, norm.weight, norm.eps);
}

Tensor call_transpose(const Tensor &w_packed, const c10::SymInt &in_features) {
    static const auto op = find_op<Tensor(const Tensor &, c10::SymInt)>("bittorch::ternary_transpose");
    return op.call(w_packed, in_features);
}

Tensor token_rows(const Tensor &t) {
    return t.reshape_symint({c10::multiply_integers(t.sym_sizes().slice(0, t.dim() - 1)), t.sym_size(-1)});
}

// What every backward shares: through the decoded weight to x, and to the bias.
struct LinearGrads {
    Tensor x, bias;
};

// g @ (codes * scale). g * scale is rounded to bfloat16 where the decoded weight would be, but not to float16, whose
// range a scale would leave.
Tensor grad_of_x(const Tensor &g, const Tensor &w_packed, const Tensor &scale, const c10::SymInt &in_features,
                 int64_t bits) {
    const at::ScalarType dtype = g.scalar_type();
    if (!g.is_cpu() || scale.dim() == 2) {
        std::vector<c10::SymInt> sizes = g.sym_sizes().vec();
        sizes.back() = in_features;
        return at::mm(token_rows(g), call_unpack(w_packed, scale, in_features, dtype)).reshape_symint(sizes);
    }
    const Tensor scaled = (g * scale).to(dtype == at::kBFloat16 ? dtype : at::kFloat);
    const Tensor transposed = call_transpose(w_packed, in_features), one = at::ones({1}, scale.options());
    const bool digits = bits && dtype == at::kFloat;
    return (digits ? call_w2a8(scaled, transposed, one, std::nullopt, std::nullopt, std::nullopt, 24, "auto")
                   : call_packed(scaled, transposed, one, std::nullopt, "auto"))
        .to(dtype);
}

LinearGrads linear_grads(const Tensor &g, const Tensor &w_packed, const Tensor &scale, const c10::SymInt &in_features,
                         int64_t bits, bool want_x, bool want_bias, OptionalDtype bias_dtype) {
    LinearGrads grads;
    if (want_x)
        grads.x = grad_of_x(g, w_packed, scale, in_features, bits);
    if (want_bias)
        grads.bias = token_rows(g).sum(0).to(*bias_dtype);
    return grads;
}

// From the gradient of the norm of x to that of x, and of the norm's weight.
std::tuple<Tensor, Tensor> norm_grads(const Tensor &g, const Tensor &x, const Tensor &weight, double eps) {
    const Tensor wide = x.to(at::kFloat), wide_g = g.to(at::kFloat);
    const Tensor factor = wide.square().mean(-1, true).add(eps).rsqrt(), normal = wide * factor, u = wide_g * weight;
    const Tensor grad_x = factor * (u - normal * (u * normal).mean(-1, true));
    return {grad_x.to(x.scalar_type()), token_rows(wide_g * normal).sum(0).to(weight.scalar_type())};
}

// Frozen codes: x, the bias and the weight of a norm get gradients. Serves ternary_linear_packed and, with int8
// activations, ternary_linear_w2a8.
struct FrozenLinear : torch::autograd::Function<FrozenLinear> {
    static Tensor forward(AutogradContext *ctx, const Tensor &x, const Tensor &w_packed, const Tensor &scale,
                          const OptionalTensor &bias, int64_t bits, const OptionalTensor &x_scale,
                          OptionalDtype out_dtype, const std::string &variant, const OptionalTensor &norm_weight,
                          double norm_eps) {
        const at::AutoDispatchBelowADInplaceOrView below;
        ctx->save_for_backward({w_packed, scale, norm_weight ? x : Tensor(), norm_weight.value_or(Tensor())});
        ctx->saved_data["norm_eps"] = norm_eps;
        ctx->saved_data["in_features"] = x.sym_size(-1);
        ctx->saved_data["bits"] = bits;
        ctx->saved_data["bias_dtype"] = dtype_of(bias);
        return bits ? call_w2a8(x, w_packed, scale, bias, x_scale, out_dtype, bits, variant, {norm_weight, norm_eps})
                    : call_packed(x, w_packed, scale, bias, variant);
    }

    static variable_list backward(AutogradContext *ctx, const variable_list &g) {
        const variable_list saved = ctx->get_saved_variables();
        const OptionalDtype bias_dtype = ctx->saved_data["bias_dtype"].toOptional<at::ScalarType>();
        const bool want_bias = bias_dtype && ctx->needs_input_grad(3); // an absent tensor has no index
        const bool normed = saved[3].defined(), want_norm = normed && ctx->needs_input_grad(bias_dtype ? 4 : 3);
        const bool want_x = ctx->needs_input_grad(0) || want_norm;
        LinearGrads grads = linear_grads(g[0], saved[0], saved[1], ctx->saved_data["in_features"].toSymInt(),
                                         ctx->saved_data["bits"].toInt(), want_x, want_bias, bias_dtype);
        Tensor grad_norm;
        if (normed && want_x)
            std::tie(grads.x, grad_norm) =
                norm_grads(grads.x, saved[2], saved[3], ctx->saved_data["norm_eps"].toDouble());
        return once({grads.x, {}, {}, grads.bias, {}, {}, {}, {}, grad_norm, {}});
    }
};

Tensor packed_autograd(const Tensor &x, const Tensor &w_packed, const Tensor &scale, const OptionalTensor &bias,
                       const std::string &variant) {
    if (wants_grad({x, bias}))
        return FrozenLinear::apply(x, w_packed, scale, bias, int64_t{0}, std::nullopt, std::nullopt, variant,
                                   std::nullopt, 1.0);
    const at::AutoDispatchBelowADInplaceOrView below;
    return call_packed(x, w_packed, scale, bias, variant);
}

Tensor w2a8_autograd(const Tensor &x, const Tensor &w_packed, const Tensor &scale, const OptionalTensor &bias,
                     const OptionalTensor &x_scale, OptionalDtype out_dtype, int64_t activation_bits,
                     const std::string &variant, const OptionalTensor &norm_weight, double norm_eps) {
    if (wants_grad({x, bias, norm_weight}))
        return FrozenLinear::apply(x, w_packed, scale, bias, activation_bits, x_scale, out_dtype, variant, norm_weight,
                                   norm_eps);
    const at::AutoDispatchBelowADInplaceOrView below;
    return call_w2a8(x, w_packed, scale, bias, x_scale, out_dtype, activation_bits, variant, {norm_weight, norm_eps});
}

// Codes and scales of a weight.
using Packed = std::tuple<Tensor, Tensor>;

// bits: 0 for floating activations, 8, or 16 and 24 for digits. The backward pass needs Q(x): codes of 8 bits are kept,
// a fourth of x; digits would take as much as x, which is kept instead and quantised once more.
struct TrainedLinear : torch::autograd::Function<TrainedLinear> {
    // `quantize` makes codes and scales, or has them.
    static Tensor forward(AutogradContext *ctx, const Tensor &x, const Tensor &weight, const OptionalTensor &bias,
                          const std::function<Packed()> &quantize, int64_t bits, const std::string &variant) {
        const at::AutoDispatchBelowADInplaceOrView below;
        const auto [w_packed, scale] = quantize();
        Tensor kept = weight.requires_grad() ? x : Tensor(), kept_scale;
        ctx->saved_data["bias_dtype"] = dtype_of(bias);
        ctx->saved_data["weight_dtype"] = weight.scalar_type();
        ctx->saved_data["in_features"] = weight.sym_size(1);
        ctx->saved_data["bits"] = bits;
        if (bits == 8 && weight.requires_grad())
            std::tie(kept, kept_scale) = call_act_quantize(x, bits);
        ctx->save_for_backward({w_packed, scale, kept, kept_scale});
        return bits ? call_w2a8(x, w_packed, scale, bias, std::nullopt, std::nullopt, bits, variant)
                    : call_packed(x, w_packed, scale, bias, variant);
    }

    static Tensor quantized_input(const Tensor &kept, const Tensor &kept_scale, int64_t bits, at::ScalarType dtype) {
        if (bits == 0)
            return kept;
        if (bits == 8)
            return dequantize(kept, kept_scale, dtype);
        const auto [q, scale] = call_act_quantize(kept, bits);
        return dequantize(q, scale, dtype);
    }

    static variable_list backward(AutogradContext *ctx, const variable_list &grad_outputs) {
        const variable_list saved = ctx->get_saved_variables();
        const Tensor &g = grad_outputs[0];
        const OptionalDtype bias_dtype = ctx->saved_data["bias_dtype"].toOptional<at::ScalarType>();
        const bool want_bias = bias_dtype && ctx->needs_input_grad(2); // an absent bias has no index
        const int64_t bits = ctx->saved_data["bits"].toInt();
        const LinearGrads grads = linear_grads(g, saved[0], saved[1], ctx->saved_data["in_features"].toSymInt(), bits,
                                               ctx->needs_input_grad(0), want_bias, bias_dtype);
        Tensor grad_weight;
        if (ctx->needs_input_grad(1)) {
            const Tensor x = quantized_input(saved[2], saved[3], bits, g.scalar_type());
            grad_weight = at::mm(token_rows(g).t(), token_rows(x)).to(ctx->saved_data["weight_dtype"].toScalarType());
        }
        return once({grads.x, grad_weight, grads.bias, {}, {}, {}});
    }
};

Tensor linear_forward(const Tensor &x, const Packed &packed, const OptionalTensor &bias, int64_t bits,
                      const std::string &variant) {
    const auto &[w_packed, scale] = packed;
    return bits ? call_w2a8(x, w_packed, scale, bias, std::nullopt, std::nullopt, bits, variant)
                : call_packed(x, w_packed, scale, bias, variant);
}

Tensor linear_autograd(const Tensor &x, const Tensor &weight, const OptionalTensor &bias, const std::string &method,
                       const std::string &scale_rule, double threshold_factor, const std::string &granularity,
                       int64_t group_size, int64_t activation_bits, const std::string &variant) {
    const QuantizeArgs args{method, scale_rule, threshold_factor, granularity, group_size};
    check_activation_bits(activation_bits);
    const std::function<Packed()> quantize = [&] { return call_quantize(weight, args); };
    if (wants_grad({x, weight, bias}))
        return TrainedLinear::apply(x, weight, bias, quantize, activation_bits, variant);
    const at::AutoDispatchBelowADInplaceOrView below;
    return linear_forward(x, quantize(), bias, activation_bits, variant);
}

Tensor linear_composite(const Tensor &x, const Tensor &weight, const OptionalTensor &bias, const std::string &method,
                        const std::string &scale_rule, double threshold_factor, const std::string &granularity,
                        int64_t group_size, int64_t activation_bits, const std::string &variant) {
    check_activation_bits(activation_bits);
    return linear_forward(x, call_quantize(weight, {method, scale_rule, threshold_factor, granularity, group_size}),
                          bias, activation_bits, variant);
}

// The same product of codes that the caller made of `weight`, whose value does not matter here: it takes the gradient
// of codes * scale, and leads it on to whatever the codes were made of.
Tensor linear_ste_autograd(const Tensor &x, const Tensor &weight, const Tensor &w_packed, const Tensor &scale,
                           const OptionalTensor &bias, int64_t activation_bits, const std::string &variant) {
    check_activation_bits(activation_bits);
    const std::function<Packed()> given = [&] { return Packed(w_packed, scale); };
    if (wants_grad({x, weight, bias}))
        return TrainedLinear::apply(x, weight, bias, given, activation_bits, variant);
    const at::AutoDispatchBelowADInplaceOrView below;
    return linear_forward(x, given(), bias, activation_bits, variant);
}

Tensor linear_ste_composite(const Tensor &x, const Tensor &, const Tensor &w_packed, const Tensor &scale,
                            const OptionalTensor &bias, int64_t activation_bits, const std::string &variant) {
    check_activation_bits(activation_bits);
    return linear_forward(x, {w_packed, scale}, bias, activation_bits, variant);
}

} // namespace

TORCH_LIBRARY_IMPL(bittorch, CompositeExplicitAutograd, m) {
    m.impl("ternary_linear", &linear_composite);
    m.impl("ternary_linear_ste", &linear_ste_composite);
}

TORCH_LIBRARY_IMPL(bittorch, Autograd, m) {
    m.impl("ternary_linear_packed", &packed_autograd);
    m.impl("ternary_linear_w2a8", &w2a8_autograd);
    m.impl("ternary_linear", &linear_autograd);
    m.impl("ternary_linear_ste", &linear_ste_autograd);
}

BT_AUTOCAST(ternary_linear_packed, packed_autograd)
BT_AUTOCAST(ternary_linear_w2a8, w2a8_autograd)
BT_AUTOCAST(ternary_linear, linear_autograd)
BT_AUTOCAST(ternary_linear_ste, linear_ste_autograd)

} // namespace bittorch
