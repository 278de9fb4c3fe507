// The refusal of ops that nothing is differentiated through.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <c10/util/Exception.h>

#include <initializer_list>

namespace bittorch {

// Raises where a gradient is wanted of an input, which the op would drop without a word; null inputs are absent ones.
inline void check_no_gradient(const char *op, std::initializer_list<const at::Tensor *> inputs) {
    if (!at::GradMode::is_enabled())
        return;
    for (const at::Tensor *input : inputs)
        TORCH_CHECK_NOT_IMPLEMENTED(!input || !input->requires_grad(), op,
                                    " has no gradient; call it under torch.no_grad()");
}

} // namespace bittorch
