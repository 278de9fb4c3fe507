// The device functions behind torch.ops.bittorch.*; schemas and contracts are in library.cpp.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <tuple>

namespace bittorch {

at::Tensor ternary_pack(const at::Tensor &codes, bool check);

at::Tensor ternary_unpack(const at::Tensor &w_packed, const std::optional<at::Tensor> &scale, int64_t in_features,
                          at::ScalarType dtype);

at::Tensor ternary_check(const at::Tensor &w_packed, int64_t in_features);

at::Tensor ternary_transpose(const at::Tensor &w_packed, int64_t in_features);

std::tuple<at::Tensor, at::Tensor> ternary_quantize(const at::Tensor &w, const std::string &method,
                                                    const std::string &scale_rule, double threshold_factor,
                                                    const std::string &granularity, int64_t group_size);

std::tuple<at::Tensor, at::Tensor> act_quantize(const at::Tensor &x, int64_t bits,
                                                const std::optional<at::Tensor> &norm_weight = std::nullopt,
                                                double norm_eps = 1e-5);

at::Tensor ternary_embedding(const at::Tensor &indices, const at::Tensor &w_packed, const at::Tensor &scale,
                             int64_t in_features, at::ScalarType dtype, int64_t depth);

at::Tensor ternary_linear_packed(const at::Tensor &x, const at::Tensor &w_packed, const at::Tensor &scale,
                                 const std::optional<at::Tensor> &bias, const std::string &variant);

at::Tensor ternary_linear_w2a8(const at::Tensor &x, const at::Tensor &w_packed, const at::Tensor &scale,
                               const std::optional<at::Tensor> &bias, const std::optional<at::Tensor> &x_scale,
                               std::optional<at::ScalarType> out_dtype, int64_t activation_bits,
                               const std::string &variant, const std::optional<at::Tensor> &norm_weight,
                               double norm_eps);

at::Tensor ternary_conv2d_packed(const at::Tensor &x, const at::Tensor &w_packed, const at::Tensor &scale,
                                 const std::optional<at::Tensor> &bias, at::IntArrayRef kernel_size,
                                 at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                                 int64_t groups, int64_t activation_bits, const std::string &variant);

at::Tensor hadamard(const at::Tensor &x, int64_t block_size, const std::optional<at::Tensor> &sign_before,
                    const std::optional<at::Tensor> &sign_after);

} // namespace bittorch
