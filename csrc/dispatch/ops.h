// The functions of the ops, which ask the kernel table for the device of their tensors; library.cpp has the schemas and
// registers them, so that an op's own file does without torch's library header, which takes longer to compile than it.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <tuple>

namespace bittorch {

std::tuple<at::Tensor, at::Tensor> act_quantize(const at::Tensor &x, int64_t bits,
                                                const std::optional<at::Tensor> &norm_weight = std::nullopt,
                                                double norm_eps = 1e-5);

at::Tensor bitplane_matmul(const at::Tensor &a, const at::Tensor &b, int64_t columns, const std::string &layout);

at::Tensor bitplane_pack(const at::Tensor &w_packed, int64_t columns);

at::Tensor block_linear(const at::Tensor &x, const at::Tensor &blocks, const std::string &kind);

at::Tensor block_unpack(const at::Tensor &blocks, const std::string &kind, int64_t columns, at::ScalarType dtype);

at::Tensor decode_attention(const at::Tensor &q, const at::Tensor &kv, at::IntArrayRef lengths,
                            at::OptionalIntArrayRef rows, at::OptionalIntArrayRef counts, int64_t window,
                            std::optional<double> scale);

at::Tensor hadamard(const at::Tensor &x, int64_t block_size, const std::optional<at::Tensor> &sign_before,
                    const std::optional<at::Tensor> &sign_after);

at::Tensor half_linear(const at::Tensor &x, const at::Tensor &weight, const std::optional<at::Tensor> &bias);

at::Tensor linear_i8(const at::Tensor &x, const at::Tensor &weight, const at::Tensor &scale,
                     const std::optional<at::Tensor> &bias, int64_t activation_bits, const std::string &variant);

void rotary_store(at::Tensor heads, at::Tensor kv, const std::optional<at::Tensor> &cos,
                  const std::optional<at::Tensor> &sin, at::IntArrayRef lengths, at::OptionalIntArrayRef rows,
                  at::OptionalIntArrayRef counts);

at::Tensor ternary_check(const at::Tensor &w_packed, int64_t in_features);

at::Tensor ternary_conv2d_packed(const at::Tensor &x, const at::Tensor &w_packed, const at::Tensor &scale,
                                 const std::optional<at::Tensor> &bias, at::IntArrayRef kernel_size,
                                 at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                                 int64_t groups, int64_t activation_bits, const std::string &variant);

at::Tensor ternary_embedding(const at::Tensor &indices, const at::Tensor &w_packed, const at::Tensor &scale,
                             int64_t in_features, at::ScalarType dtype, int64_t depth);

at::Tensor ternary_from_base3(const at::Tensor &data, int64_t in_features, const std::string &layout_name);

void ternary_from_base3_out(const at::Tensor &data, int64_t in_features, const std::string &layout_name,
                            at::Tensor out);

at::Tensor ternary_from_fields(const at::Tensor &data, int64_t in_features, const std::string &layout_name,
                               at::Tensor w_packed);

at::Tensor ternary_linear_packed(const at::Tensor &x, const at::Tensor &w_packed, const at::Tensor &scale,
                                 const std::optional<at::Tensor> &bias, const std::string &variant);

at::Tensor ternary_linear_w2a8(const at::Tensor &x, const at::Tensor &w_packed, const at::Tensor &scale,
                               const std::optional<at::Tensor> &bias, const std::optional<at::Tensor> &x_scale,
                               std::optional<at::ScalarType> out_dtype, int64_t activation_bits,
                               const std::string &variant, const std::optional<at::Tensor> &norm_weight,
                               double norm_eps);

at::Tensor ternary_pack(const at::Tensor &codes, bool check);

std::tuple<at::Tensor, at::Tensor> ternary_quantize(const at::Tensor &w, const std::string &method,
                                                    const std::string &scale_rule, double threshold_factor,
                                                    const std::string &granularity, int64_t group_size);

at::Tensor ternary_transpose(const at::Tensor &w_packed, int64_t in_features);

at::Tensor ternary_unpack(const at::Tensor &w_packed, const std::optional<at::Tensor> &scale, int64_t in_features,
                          at::ScalarType dtype);

at::Tensor trit_depth_linear(const at::Tensor &x, const at::Tensor &w_packed, const at::Tensor &scale,
                             const std::optional<at::Tensor> &bias, int64_t depth, int64_t activation_bits,
                             const std::string &variant, const std::optional<at::Tensor> &norm_weight, double norm_eps);

at::Tensor trit_elementwise(const at::Tensor &a, const std::optional<at::Tensor> &b, const std::string &function,
                            int64_t columns);

at::Tensor trit_reduce(const at::Tensor &a, const std::optional<at::Tensor> &b, int64_t columns);

} // namespace bittorch
