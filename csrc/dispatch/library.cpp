// Every op of torch.ops.bittorch, one line each: the index of the library. Python adds the shapes (register_fake) in
// bittorch/ops/.
#include "ops.h"

#include <torch/library.h>

// m tokens, n = out_features, k = in_features. w_packed (n, ceil(k/4)) uint8; scale (1,), (n,) or (n, k/group_size)
// float32; variant "auto", "baseline", "tiled" or a kernel's variant.
TORCH_LIBRARY(bittorch, m) {
    m.def("ternary_pack(Tensor codes, bool check=True) -> Tensor");
    m.def("ternary_unpack(Tensor w_packed, Tensor? scale, SymInt in_features, ScalarType dtype) -> Tensor");
    m.def("ternary_check(Tensor w_packed, SymInt in_features) -> Tensor");
    m.def("ternary_transpose(Tensor w_packed, SymInt in_features) -> Tensor");
    m.def("ternary_quantize(Tensor w, str method, str scale_rule, float threshold_factor, str granularity, "
          "int group_size) -> (Tensor, Tensor)");
    m.def("act_quantize(Tensor x, int bits=8, Tensor? norm_weight=None, float norm_eps=1e-5) -> (Tensor, Tensor)");
    // w_packed and scale have depth * n rows, those of the lowest plane first
    m.def("ternary_embedding(Tensor indices, Tensor w_packed, Tensor scale, SymInt in_features, ScalarType dtype, "
          "int depth=1) -> Tensor");
    m.def("ternary_linear_packed(Tensor x, Tensor w_packed, Tensor scale, Tensor? bias=None, str variant='auto') -> "
          "Tensor");
    m.def("ternary_linear_w2a8(Tensor x, Tensor w_packed, Tensor scale, Tensor? bias=None, Tensor? x_scale=None, "
          "ScalarType? out_dtype=None, int activation_bits=8, str variant='auto', Tensor? norm_weight=None, "
          "float norm_eps=1e-5) -> Tensor");
    m.def("ternary_linear(Tensor x, Tensor weight, Tensor? bias, str method, str scale_rule, float threshold_factor, "
          "str granularity, int group_size, int activation_bits=0, str variant='auto') -> Tensor");
    m.def("ternary_linear_ste(Tensor x, Tensor weight, Tensor w_packed, Tensor scale, Tensor? bias=None, "
          "int activation_bits=0, str variant='auto') -> Tensor");
    // x (samples, channels, height, width), k = channels / groups * kernel height * kernel width
    m.def("ternary_conv2d_packed(Tensor x, Tensor w_packed, Tensor scale, Tensor? bias, int[2] kernel_size, "
          "int[2] stride, int[2] padding, int[2] dilation, int groups, int activation_bits=0, str variant='auto') -> "
          "Tensor");
    m.def("ternary_conv2d(Tensor x, Tensor weight, Tensor? bias, int[2] stride, int[2] padding, int[2] dilation, "
          "int groups, str method, str scale_rule, float threshold_factor, str granularity, int group_size, "
          "int activation_bits=0, str variant='auto') -> Tensor");
    m.def("hadamard(Tensor x, int block_size, Tensor? sign_before=None, Tensor? sign_after=None) -> Tensor");
}

namespace bittorch {

// One function serves both devices: it asks the kernel table for the tensor's device.
static void implement(torch::Library &m) {
    m.impl("ternary_pack", &ternary_pack);
    m.impl("ternary_unpack", &ternary_unpack);
    m.impl("ternary_check", &ternary_check);
    m.impl("ternary_transpose", &ternary_transpose);
    m.impl("ternary_quantize", &ternary_quantize);
    m.impl("act_quantize", &act_quantize);
    m.impl("ternary_embedding", &ternary_embedding);
    m.impl("ternary_linear_packed", &ternary_linear_packed);
    m.impl("ternary_linear_w2a8", &ternary_linear_w2a8);
    m.impl("ternary_conv2d_packed", &ternary_conv2d_packed);
    m.impl("hadamard", &hadamard);
}

TORCH_LIBRARY_IMPL(bittorch, CPU, m) {
    implement(m);
}

TORCH_LIBRARY_IMPL(bittorch, CUDA, m) {
    implement(m);
}

} // namespace bittorch
