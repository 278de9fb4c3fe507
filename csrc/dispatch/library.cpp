// Every op of torch.ops.bittorch, one line each: the index of the library. <op>.cpp implements it, and Python adds the
// shapes (register_fake) in bittorch/ops/. Ops with more than one function a device register the others themselves.
#include "ops.h"

#include <torch/library.h>

// m tokens, n = out_features, k = in_features. w_packed (n, ceil(k/4)) uint8; scale (1,), (n,) or (n, k/group_size)
// float32; variant "auto", "baseline", "tiled" or a kernel's variant.
TORCH_LIBRARY(bittorch, m) {
    m.def("ternary_pack(Tensor codes, bool check=True) -> Tensor");
    m.def("ternary_unpack(Tensor w_packed, Tensor? scale, SymInt in_features, ScalarType dtype) -> Tensor");
    m.def("ternary_check(Tensor w_packed, SymInt in_features) -> Tensor");
    // layout "rows": data (n, ceil(k/5)) uint8; "tq1_0" and "ptq1_0": rows of whole blocks, scales among them
    m.def("ternary_from_base3(Tensor data, SymInt in_features, str layout='rows') -> Tensor");
    m.def("ternary_from_base3.out(Tensor data, SymInt in_features, str layout='rows', *, Tensor(a!) out) -> ()");
    // data of (n, bytes), n / 4 rows of k bytes for "i2_s_rows4" and "bitnet"; the result (rows of data,) bool
    m.def("ternary_from_fields(Tensor data, SymInt in_features, str layout, Tensor(a!) w_packed) -> Tensor");
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
    // blocks (n, bytes) uint8: rows of quantised blocks as GGUF files have them, kind their type
    m.def("block_unpack(Tensor blocks, str kind, SymInt columns, ScalarType dtype) -> Tensor");
    m.def("block_linear(Tensor x, Tensor blocks, str kind) -> Tensor");
    // q (tokens, heads, head_dim), the new tokens of sequences one behind the other; kv (2, rows, kv_heads, capacity,
    // head_dim), which holds theirs; a length, a row and a number of new tokens for each sequence
    m.def("decode_attention(Tensor q, Tensor kv, int[] lengths, int[]? rows=None, int[]? counts=None, int window=0, "
          "float? scale=None) -> Tensor");
    // heads (tokens, heads + 2 kv_heads, head_dim): q, k and v; cos and sin (tokens, rotated)
    m.def("rotary_store(Tensor(a!) heads, Tensor(b!) kv, Tensor? cos, Tensor? sin, int[] lengths, int[]? rows=None, "
          "int[]? counts=None) -> ()");
    // weight (n, k) float16 or bfloat16
    m.def("half_linear(Tensor x, Tensor weight, Tensor? bias=None) -> Tensor");
    // weight (n, k) int8, scale (n,) float32
    m.def("linear_i8(Tensor x, Tensor weight, Tensor scale, Tensor? bias=None, int activation_bits=16, "
          "str variant='auto') -> Tensor");
    // w_packed has depth * n rows, those of the lowest plane first; scale is that of the lowest plane
    m.def("trit_depth_linear(Tensor x, Tensor w_packed, Tensor scale, Tensor? bias=None, int depth=1, "
          "int activation_bits=16, str variant='auto', Tensor? norm_weight=None, float norm_eps=1e-5) -> Tensor");
    m.def("hadamard(Tensor x, int block_size, Tensor? sign_before=None, Tensor? sign_after=None) -> Tensor");
    // a and b (rows, ceil(columns/4)) uint8 of codes, either of them also of one row
    m.def("trit_elementwise(Tensor a, Tensor? b, str function, SymInt columns) -> Tensor");
    m.def("trit_reduce(Tensor a, Tensor? b, SymInt columns) -> Tensor");
    m.def("bitplane_pack(Tensor w_packed, SymInt columns) -> Tensor");
    // b as codes, layout 'rows', or as bitplane_pack makes it, 'planes'
    m.def("bitplane_matmul(Tensor a, Tensor b, SymInt columns, str layout='rows') -> Tensor");
}

namespace bittorch {

// Codes and scales are not differentiable: autograd looks through their ops.
static void implement_codes(torch::Library &m, bool autograd) {
    const auto add = [&](const char *op, auto *function) {
        if (autograd)
            m.impl(op, torch::CppFunction::makeFallthrough());
        else
            m.impl(op, function);
    };
    add("act_quantize", &act_quantize);
    add("bitplane_matmul", &bitplane_matmul);
    add("bitplane_pack", &bitplane_pack);
    add("block_linear", &block_linear);
    add("block_unpack", &block_unpack);
    add("decode_attention", &decode_attention);
    add("half_linear", &half_linear);
    add("linear_i8", &linear_i8);
    add("rotary_store", &rotary_store);
    add("ternary_check", &ternary_check);
    add("ternary_embedding", &ternary_embedding);
    add("ternary_from_base3", &ternary_from_base3);
    add("ternary_from_base3.out", &ternary_from_base3_out);
    add("ternary_from_fields", &ternary_from_fields);
    add("ternary_pack", &ternary_pack);
    add("ternary_quantize", &ternary_quantize);
    add("ternary_transpose", &ternary_transpose);
    add("ternary_unpack", &ternary_unpack);
    add("trit_depth_linear", &trit_depth_linear);
    add("trit_elementwise", &trit_elementwise);
    add("trit_reduce", &trit_reduce);
}

// One function serves both devices.
static void implement(torch::Library &m) {
    implement_codes(m, false);
    m.impl("hadamard", &hadamard);
    m.impl("ternary_conv2d_packed", &ternary_conv2d_packed);
    m.impl("ternary_linear_packed", &ternary_linear_packed);
    m.impl("ternary_linear_w2a8", &ternary_linear_w2a8);
}

TORCH_LIBRARY_IMPL(bittorch, CPU, m) {
    implement(m);
}

TORCH_LIBRARY_IMPL(bittorch, CUDA, m) {
    implement(m);
}

TORCH_LIBRARY_IMPL(bittorch, Autograd, m) {
    implement_codes(m, true);
}

} // namespace bittorch
