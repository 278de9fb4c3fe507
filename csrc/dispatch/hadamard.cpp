#include "autograd.h"
#include "launch.h"
#include "ops.h"

#include <torch/library.h>

namespace bittorch {

// (columns,) int8 of 1 and -1. Values are read on a CPU alone: on CUDA it would wait for the device, and the kernel
// answers another value with NaN.
static at::Tensor checked_sign(const std::optional<at::Tensor> &sign, const char *name, const at::Tensor &x) {
    if (!sign)
        return {};
    TORCH_CHECK_TYPE(sign->scalar_type() == at::kChar, name, " must be int8, got ", dtype_name(*sign));
    check_same_device({{"x", &x}, {name, &*sign}});
    TORCH_CHECK_VALUE(sign->dim() == 1 && sign->size(0) == x.size(-1), name, " must be (", x.size(-1),
                      ",), one a column of x, got ", sign->sizes());
    const at::Tensor values = sign->contiguous();
    if (values.device().is_cpu()) {
        const int8_t *const value = values.const_data_ptr<int8_t>();
        for (int64_t c = 0; c < values.numel(); c++)
            TORCH_CHECK_VALUE(value[c] == 1 || value[c] == -1, name, " must be 1 or -1, got ", int{value[c]},
                              " at column ", c);
    }
    return values;
}

at::Tensor hadamard(const at::Tensor &x, int64_t block_size, const std::optional<at::Tensor> &sign_before,
                    const std::optional<at::Tensor> &sign_after) {
    bt_hadamard p{};
    p.type = float_type(x, "x");
    TORCH_CHECK_VALUE(x.dim() >= 1, "x must have at least one dimension, got a scalar");
    TORCH_CHECK_VALUE(block_size >= 1 && block_size <= BT_HADAMARD_MAX && (block_size & (block_size - 1)) == 0,
                      "block_size must be a power of two from 1 to ", int{BT_HADAMARD_MAX}, ", got ", block_size);
    TORCH_CHECK_VALUE(x.size(-1) % block_size == 0,
                      "block_size must divide the last dimension of x, got block_size=", block_size, " and ",
                      x.size(-1), " columns");
    const at::Tensor before = checked_sign(sign_before, "sign_before", x);
    const at::Tensor after = checked_sign(sign_after, "sign_after", x);
    const bt_kernel &kernel = find_kernel(BT_OP_hadamard, device_kind(x, "x"), p.type, "auto");
    const c10::DeviceGuard guard(x.device());
    const at::Tensor rows = as_rows(x, "x");
    at::Tensor y = empty(x.sizes(), x.options());
    if (y.numel() == 0)
        return y;
    p.x = rows.const_data_ptr();
    p.before = before.defined() ? before.const_data_ptr<int8_t>() : nullptr;
    p.after = after.defined() ? after.const_data_ptr<int8_t>() : nullptr;
    p.y = y.mutable_data_ptr();
    p.m = rows.size(0), p.k = rows.size(1), p.n = block_size, p.ldx = rows.stride(0), p.ldy = p.k;
    launch(kernel, p, bt_hadamard_tiles(&p), work_of({p.m, p.k}));
    return y;
}

namespace {

Tensor call_hadamard(const Tensor &x, int64_t block_size, const OptionalTensor &before, const OptionalTensor &after) {
    static const auto op =
        find_op<Tensor(const Tensor &, int64_t, const OptionalTensor &, const OptionalTensor &)>("bittorch::hadamard");
    return op.call(x, block_size, before, after);
}

OptionalTensor optional(const Tensor &t) {
    return t.defined() ? OptionalTensor(t) : std::nullopt;
}

// The matrix of the transform is symmetric: its transpose has the signs exchanged. The gradient is a call of the op
// with a graph of its own, so that it has derivatives too.
struct Hadamard : torch::autograd::Function<Hadamard> {
    static Tensor forward(AutogradContext *ctx, const Tensor &x, int64_t block_size, const OptionalTensor &before,
                          const OptionalTensor &after) {
        const at::AutoDispatchBelowADInplaceOrView below;
        ctx->save_for_backward({before.value_or(Tensor()), after.value_or(Tensor())});
        ctx->saved_data["block_size"] = block_size;
        return call_hadamard(x, block_size, before, after);
    }

    static variable_list backward(AutogradContext *ctx, const variable_list &g) {
        const variable_list signs = ctx->get_saved_variables();
        const int64_t block_size = ctx->saved_data["block_size"].toInt();
        return {call_hadamard(g[0], block_size, optional(signs[1]), optional(signs[0])), {}, {}, {}};
    }
};

Tensor hadamard_autograd(const Tensor &x, int64_t block_size, const OptionalTensor &before,
                         const OptionalTensor &after) {
    if (wants_grad({x}))
        return Hadamard::apply(x, block_size, before, after);
    const at::AutoDispatchBelowADInplaceOrView below;
    return call_hadamard(x, block_size, before, after);
}

} // namespace

TORCH_LIBRARY_IMPL(bittorch, Autograd, m) {
    m.impl("hadamard", &hadamard_autograd);
}

} // namespace bittorch
