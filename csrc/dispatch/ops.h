// Device functions that other files of this folder call; schemas and contracts are in library.cpp.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <tuple>

namespace bittorch {

at::Tensor ternary_unpack(const at::Tensor &w_packed, const std::optional<at::Tensor> &scale, int64_t in_features,
                          at::ScalarType dtype);

at::Tensor bitplane_pack(const at::Tensor &w_packed, int64_t columns);

at::Tensor ternary_check(const at::Tensor &w_packed, int64_t in_features);

std::tuple<at::Tensor, at::Tensor> act_quantize(const at::Tensor &x, int64_t bits,
                                                const std::optional<at::Tensor> &norm_weight = std::nullopt,
                                                double norm_eps = 1e-5);

at::Tensor ternary_linear_packed(const at::Tensor &x, const at::Tensor &w_packed, const at::Tensor &scale,
                                 const std::optional<at::Tensor> &bias, const std::string &variant);

} // namespace bittorch
