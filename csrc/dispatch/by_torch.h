// Products that torch computes of the decoded weight, instead of a kernel: where the table says that it pays on CUDA,
// convolutions there, and on a CPU by the names "unpack" and "unfold", to be compared with the kernels.
#pragma once

#include "checks.h"

namespace bittorch {

// y = rows @ (codes * scale)^T + bias, the weight rounded to the type of x.
void multiply_unpacked(const at::Tensor &rows, const at::Tensor &w_packed, const at::Tensor &scale,
                       const std::optional<at::Tensor> &bias, const at::Tensor &y);

// linear_i8 by products of float32, which are exact for so few columns at a time.
at::Tensor multiply_int8(const at::Tensor &x, const at::Tensor &weight, const at::Tensor &scale,
                         const std::optional<at::Tensor> &bias, int64_t bits);

// im2col: (samples, channels * kernel_h * kernel_w, positions).
at::Tensor patches_of(const at::Tensor &x, const bt_ternary_conv2d_packed &p);

// The convolution as a product of the patches; `bits` as activation_bits.
at::Tensor convolve_unfolded(const at::Tensor &x, const at::Tensor &w_packed, const at::Tensor &scale,
                             const std::optional<at::Tensor> &bias, const bt_ternary_conv2d_packed &p, int64_t bits,
                             const std::string &variant);

} // namespace bittorch
