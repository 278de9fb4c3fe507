// Gradients and autocast of the convolutions, as in ternary_linear.cpp: autograd nodes that call the ops of library.cpp
// below autograd, and save codes and scales, never the dense quantised weight.
//
//   forward   y = conv2d(Q(x), codes * scale) + bias         codes, scale = ternary_quantize(weight.flatten(1))
//   backward  torch's convolution_backward of Q(x) and codes * scale, straight through both quantisers
#include "autograd.h"

#include <ATen/ops/convolution_backward.h>
#include <torch/library.h>

namespace bittorch {
namespace {

using at::IntArrayRef;
using c10::SymInt;

struct Geometry {
    std::vector<int64_t> kernel_size, stride, padding, dilation;
    int64_t groups;

    void save(AutogradContext *ctx) const {
        ctx->saved_data["stride"] = stride;
        ctx->saved_data["padding"] = padding;
        ctx->saved_data["dilation"] = dilation;
        ctx->saved_data["groups"] = groups;
    }
};

Tensor call_conv2d(const Tensor &x, const Tensor &w_packed, const Tensor &scale, const OptionalTensor &bias,
                   const Geometry &g, int64_t bits, const std::string &variant) {
    static const auto op =
        find_op<Tensor(const Tensor &, const Tensor &, const Tensor &, const OptionalTensor &, IntArrayRef, IntArrayRef,
                       IntArrayRef, IntArrayRef, int64_t, int64_t, const std::string &)>(
            "bittorch::ternary_conv2d_packed");
    return op.call(x, w_packed, scale, bias, g.kernel_size, g.stride, g.padding, g.dilation, g.groups, bits, variant);
}

// Gradients of x, weight and bias, of which `mask` asks; x stands for its sizes alone where no weight gradient is
// wanted.
std::tuple<Tensor, Tensor, Tensor> conv2d_grads(AutogradContext *ctx, const Tensor &g, const Tensor &x,
                                                const Tensor &w_packed, const Tensor &scale, std::array<bool, 3> mask) {
    const std::vector<SymInt> weight_sizes = ctx->saved_data["weight_sizes"].toSymIntVector();
    const auto ints = [&](const char *name) { return ctx->saved_data[name].toSymIntVector(); };
    const SymInt columns = weight_sizes[1] * weight_sizes[2] * weight_sizes[3];
    const Tensor weight = call_unpack(w_packed, scale, columns, g.scalar_type()).view_symint(weight_sizes);
    const std::vector<SymInt> bias_sizes{weight_sizes[0]}, no_output_padding(2, 0);
    auto [grad_x, grad_weight, grad_bias] = at::convolution_backward_symint(
        g, x, weight, c10::SymIntArrayRef(bias_sizes), ints("stride"), ints("padding"), ints("dilation"),
        /*transposed=*/false, no_output_padding, ctx->saved_data["groups"].toInt(), mask);
    if (mask[2])
        grad_bias = grad_bias.to(*ctx->saved_data["bias_dtype"].toOptional<at::ScalarType>());
    return {mask[0] ? grad_x : Tensor(), mask[1] ? grad_weight : Tensor(), mask[2] ? grad_bias : Tensor()};
}

// Frozen codes: x and the bias get gradients.
struct FrozenConv2d : torch::autograd::Function<FrozenConv2d> {
    static Tensor forward(AutogradContext *ctx, const Tensor &x, const Tensor &w_packed, const Tensor &scale,
                          const OptionalTensor &bias, const Geometry &g, int64_t bits, const std::string &variant) {
        const at::AutoDispatchBelowADInplaceOrView below;
        Tensor y = call_conv2d(x, w_packed, scale, bias, g, bits, variant);
        ctx->save_for_backward({w_packed, scale});
        g.save(ctx);
        ctx->saved_data["x_sizes"] = x.sym_sizes();
        const std::vector<SymInt> weight_sizes{w_packed.sym_size(0), x.sym_size(1) / g.groups, g.kernel_size[0],
                                               g.kernel_size[1]};
        ctx->saved_data["weight_sizes"] = c10::SymIntArrayRef(weight_sizes);
        ctx->saved_data["bias_dtype"] = dtype_of(bias);
        return y;
    }

    static variable_list backward(AutogradContext *ctx, const variable_list &grad_outputs) {
        const variable_list saved = ctx->get_saved_variables();
        const Tensor &g = grad_outputs[0];
        const Tensor x = g.new_zeros({1}).expand_symint(ctx->saved_data["x_sizes"].toSymIntVector());
        const bool has_bias = ctx->saved_data["bias_dtype"].toOptional<at::ScalarType>().has_value();
        const bool want_bias = has_bias && ctx->needs_input_grad(3); // an absent bias has no index
        const auto [grad_x, grad_weight, grad_bias] =
            conv2d_grads(ctx, g, x, saved[0], saved[1], {ctx->needs_input_grad(0), false, want_bias});
        return once({grad_x, {}, {}, grad_bias, {}, {}, {}});
    }
};

Tensor packed_autograd(const Tensor &x, const Tensor &w_packed, const Tensor &scale, const OptionalTensor &bias,
                       IntArrayRef kernel_size, IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation,
                       int64_t groups, int64_t activation_bits, const std::string &variant) {
    const Geometry g{kernel_size.vec(), stride.vec(), padding.vec(), dilation.vec(), groups};
    if (wants_grad({x, bias}))
        return FrozenConv2d::apply(x, w_packed, scale, bias, g, activation_bits, variant);
    const at::AutoDispatchBelowADInplaceOrView below;
    return call_conv2d(x, w_packed, scale, bias, g, activation_bits, variant);
}

Tensor conv2d_forward(const Tensor &x, const Tensor &weight, const OptionalTensor &bias, const Geometry &g,
                      const QuantizeArgs &args, int64_t bits, const std::string &variant) {
    const auto [w_packed, scale] = call_quantize(weight.flatten(1), args);
    return call_conv2d(x, w_packed, scale, bias, g, bits, variant);
}

// bits: as in TrainedLinear. Codes of 8 bits are kept in place of x; with digits x is kept and quantised once more.
struct TrainedConv2d : torch::autograd::Function<TrainedConv2d> {
    static Tensor forward(AutogradContext *ctx, const Tensor &x, const Tensor &weight, const OptionalTensor &bias,
                          const Geometry &g, const QuantizeArgs &args, int64_t bits, const std::string &variant) {
        const at::AutoDispatchBelowADInplaceOrView below;
        const auto [w_packed, scale] = call_quantize(weight.flatten(1), args);
        Tensor y = call_conv2d(x, w_packed, scale, bias, g, bits, variant);
        Tensor kept = weight.requires_grad() ? x : Tensor(), kept_scale;
        if (bits == 8 && weight.requires_grad())
            std::tie(kept, kept_scale) = call_act_quantize(x.flatten(1), bits);
        ctx->save_for_backward({w_packed, scale, kept, kept_scale});
        g.save(ctx);
        ctx->saved_data["x_sizes"] = x.sym_sizes();
        ctx->saved_data["weight_sizes"] = weight.sym_sizes();
        ctx->saved_data["weight_dtype"] = weight.scalar_type();
        ctx->saved_data["bias_dtype"] = dtype_of(bias);
        ctx->saved_data["bits"] = bits;
        return y;
    }

    // Q(x); zeros of its sizes where no gradient depends on it.
    static Tensor quantized_input(AutogradContext *ctx, const Tensor &g, const Tensor &kept, const Tensor &kept_scale) {
        const std::vector<SymInt> sizes = ctx->saved_data["x_sizes"].toSymIntVector();
        const int64_t bits = ctx->saved_data["bits"].toInt();
        if (!ctx->needs_input_grad(1))
            return g.new_zeros({1}).expand_symint(sizes);
        if (bits == 0)
            return kept;
        if (bits == 8)
            return dequantize(kept, kept_scale, g.scalar_type()).view_symint(sizes);
        const auto [q, scale] = call_act_quantize(kept.flatten(1), bits);
        return dequantize(q, scale, g.scalar_type()).view_symint(sizes);
    }

    static variable_list backward(AutogradContext *ctx, const variable_list &grad_outputs) {
        const variable_list saved = ctx->get_saved_variables();
        const Tensor &g = grad_outputs[0];
        const bool has_bias = ctx->saved_data["bias_dtype"].toOptional<at::ScalarType>().has_value();
        const bool want_bias = has_bias && ctx->needs_input_grad(2); // an absent bias has no index
        auto [grad_x, grad_weight, grad_bias] =
            conv2d_grads(ctx, g, quantized_input(ctx, g, saved[2], saved[3]), saved[0], saved[1],
                         {ctx->needs_input_grad(0), ctx->needs_input_grad(1), want_bias});
        if (grad_weight.defined())
            grad_weight = grad_weight.to(ctx->saved_data["weight_dtype"].toScalarType());
        return once({grad_x, grad_weight, grad_bias, {}, {}, {}, {}});
    }
};

Geometry geometry_of(const Tensor &weight, IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation,
                     int64_t groups) {
    TORCH_CHECK_VALUE(weight.dim() == 4,
                      "weight must be (out_channels, channels / groups, kernel height, kernel width), got ",
                      weight.sizes());
    return {{weight.size(2), weight.size(3)}, stride.vec(), padding.vec(), dilation.vec(), groups};
}

template <bool autograd>
Tensor conv2d(const Tensor &x, const Tensor &weight, const OptionalTensor &bias, IntArrayRef stride,
              IntArrayRef padding, IntArrayRef dilation, int64_t groups, const std::string &method,
              const std::string &scale_rule, double threshold_factor, const std::string &granularity,
              int64_t group_size, int64_t activation_bits, const std::string &variant) {
    const QuantizeArgs args{method, scale_rule, threshold_factor, granularity, group_size};
    const Geometry g = geometry_of(weight, stride, padding, dilation, groups);
    check_activation_bits(activation_bits);
    if constexpr (autograd) {
        if (wants_grad({x, weight, bias}))
            return TrainedConv2d::apply(x, weight, bias, g, args, activation_bits, variant);
        const at::AutoDispatchBelowADInplaceOrView below;
        return conv2d_forward(x, weight, bias, g, args, activation_bits, variant);
    }
    return conv2d_forward(x, weight, bias, g, args, activation_bits, variant);
}

} // namespace

TORCH_LIBRARY_IMPL(bittorch, CompositeExplicitAutograd, m) {
    m.impl("ternary_conv2d", &conv2d<false>);
}

TORCH_LIBRARY_IMPL(bittorch, Autograd, m) {
    m.impl("ternary_conv2d_packed", &packed_autograd);
    m.impl("ternary_conv2d", &conv2d<true>);
}

BT_AUTOCAST(ternary_conv2d_packed, packed_autograd)
BT_AUTOCAST(ternary_conv2d, conv2d<true>)

} // namespace bittorch
