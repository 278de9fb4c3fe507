// What the autograd nodes of the products share: calls through the dispatcher, what a backward pass needs, autocast.
#pragma once

#include <ATen/FuncTorchTLS.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/functions/basic_ops.h>

#include <optional>
#include <string>
#include <tuple>

namespace bittorch {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using OptionalTensor = std::optional<Tensor>;
using OptionalDtype = std::optional<at::ScalarType>;

template <typename Signature> auto find_op(const char *name) {
    return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

inline Tensor call_unpack(const Tensor &w_packed, const Tensor &scale, const c10::SymInt &in_features,
                          at::ScalarType dtype) {
    static const auto op = find_op<Tensor(const Tensor &, const OptionalTensor &, c10::SymInt, at::ScalarType)>(
        "bittorch::ternary_unpack");
    return op.call(w_packed, scale, in_features, dtype);
}

inline std::tuple<Tensor, Tensor> call_act_quantize(const Tensor &x, int64_t bits) {
    static const auto op = find_op<std::tuple<Tensor, Tensor>(const Tensor &, int64_t, const OptionalTensor &, double)>(
        "bittorch::act_quantize");
    return op.call(x, bits, std::nullopt, 1.0);
}

struct QuantizeArgs {
    std::string method, scale_rule;
    double threshold_factor;
    std::string granularity;
    int64_t group_size;
};

inline std::tuple<Tensor, Tensor> call_quantize(const Tensor &w, const QuantizeArgs &a) {
    static const auto op =
        find_op<std::tuple<Tensor, Tensor>(const Tensor &, const std::string &, const std::string &, double,
                                           const std::string &, int64_t)>("bittorch::ternary_quantize");
    return op.call(w, a.method, a.scale_rule, a.threshold_factor, a.granularity, a.group_size);
}

// torch.func differentiates no autograd node of C++; torch's own error does not say what to do about it.
inline void check_transforms() {
    const auto &functorch = at::functorch::functorchTLSAccessor();
    try {
        if (functorch)
            functorch->checkSupportsCppAutogradFunction();
    } catch (const c10::Error &) {
        TORCH_CHECK_NOT_IMPLEMENTED(false,
                                    "bittorch: torch.func transforms (grad, vjp, jacrev, per-sample gradients) do not "
                                    "differentiate the ternary products; make the layer with backend='python', which "
                                    "is plain torch, or call backward() without torch.func");
    }
}

// Whether the product has to be an autograd node. Forward mode is refused: its tangents would silently be zero.
inline bool wants_grad(std::initializer_list<OptionalTensor> inputs) {
    bool wanted = false;
    for (const OptionalTensor &t : inputs) {
        if (!t || !t->defined())
            continue;
        TORCH_CHECK_NOT_IMPLEMENTED(
            !t->_fw_grad(/*level=*/0).defined(),
            "bittorch: the ternary products have no forward-mode derivative; use backward(), or a "
            "layer with backend='python'");
        wanted = wanted || t->requires_grad();
    }
    wanted = wanted && at::GradMode::is_enabled();
    if (wanted)
        check_transforms();
    return wanted;
}

// A second derivative would silently miss the quantiser, so asking for one raises.
inline variable_list once(variable_list grads) {
    if (!at::GradMode::is_enabled())
        return grads;
    for (Tensor &grad : grads)
        if (grad.defined())
            grad = grad.detach().requires_grad_(); // else the error would wait for an output gradient that has a graph
    const auto error = std::make_shared<torch::autograd::DelayedError>(
        "bittorch: the straight-through estimator has no second derivative; double backward is not supported, except "
        "by "
        "a layer with backend='python', which takes the quantisers for the identity",
        static_cast<int64_t>(grads.size()));
    return (*error)(std::move(grads));
}

inline OptionalDtype dtype_of(const OptionalTensor &t) {
    return t ? OptionalDtype(t->scalar_type()) : std::nullopt;
}

// Q(x), from the codes of x or of its digits: a code has at most 24 bits, so it is exact in fp32.
inline Tensor dequantize(const Tensor &q, const Tensor &scale, at::ScalarType dtype) {
    if (scale.scalar_type() == at::kFloat)
        return (q * scale).to(dtype);
    const int64_t digits = q.size(-2);
    Tensor code = q.select(-2, digits - 1).to(at::kFloat);
    for (int64_t d = digits - 2; d >= 0; d--)
        code = code.mul_(256).add_(q.select(-2, d));
    return code.mul_(scale.to(at::kFloat)).to(dtype);
}

inline void check_activation_bits(int64_t bits) {
    TORCH_CHECK_VALUE(bits == 0 || bits == 8 || bits == 16 || bits == 24,
                      "activation_bits must be 8, 16, 24, or 0 for floating activations, got ", bits);
}

// Autocast casts x alone: the master weight keeps its precision, codes and scales have no other, a bias is added in
// fp32.
template <c10::DeviceType device, const char *op, typename Signature> struct Autocast;
template <c10::DeviceType device, const char *op, typename... Rest>
struct Autocast<device, op, Tensor(const Tensor &, Rest...)> {
    static Tensor call(const Tensor &x, Rest... rest) {
        static const auto handle = find_op<Tensor(const Tensor &, Rest...)>(op);
        const c10::impl::ExcludeDispatchKeyGuard off(at::autocast::get_autocast_dispatch_key_from_device_type(device));
        return handle.call(at::autocast::cached_cast(at::autocast::get_autocast_dtype(device), x, device), rest...);
    }
};

// Registers the product of this name, whose C++ signature is that of `function`.
#define BT_AUTOCAST(product, function)                                                                                 \
    static constexpr char product##_name[] = "bittorch::" #product;                                                    \
    TORCH_LIBRARY_IMPL(bittorch, AutocastCPU, m) {                                                                     \
        m.impl(#product, &Autocast<c10::DeviceType::CPU, product##_name, decltype(function)>::call);                   \
    }                                                                                                                  \
    TORCH_LIBRARY_IMPL(bittorch, AutocastCUDA, m) {                                                                    \
        m.impl(#product, &Autocast<c10::DeviceType::CUDA, product##_name, decltype(function)>::call);                  \
    }

} // namespace bittorch
