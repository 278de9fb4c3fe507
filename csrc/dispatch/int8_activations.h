// Activations of the int8 products: how a call gives them, and how a CPU quantises them, some tokens at a time.
#pragma once

#include "launch.h"

namespace bittorch {

// Rows of codes that are made at once: bounds the scratch whatever the batch.
constexpr int64_t code_rows = 4096;

// The activations as the call gives them: floating, or int8 codes with one scale a token.
struct Activations {
    at::Tensor rows;
    const float *scale; // nullptr for floating rows
    int type;
    at::Tensor norm_weight; // undefined without a norm
    double norm_eps;
};

inline bt_act_quantize quantize_params(const Activations &x, int digits, int64_t first, int64_t count) {
    bt_act_quantize a{};
    a.digits = digits;
    a.x = static_cast<const char *>(x.rows.const_data_ptr()) + first * x.rows.stride(0) * x.rows.element_size();
    a.x_type = x.type;
    a.m = count, a.k = x.rows.size(1), a.ldx = x.rows.stride(0);
    set_norm(a, x.norm_weight, x.norm_eps);
    return a;
}

// Where the scales of the tokens go: float for one digit, double for more.
inline void set_scales(bt_act_quantize &a, void *scales) {
    a.scale = a.digits == 1 ? static_cast<float *>(scales) : nullptr;
    a.step = a.digits == 1 ? nullptr : static_cast<double *>(scales);
}

inline void quantize(const bt_kernel &kernel, const bt_act_quantize &a) {
    launch(kernel, a, a.m, work_of({a.m, a.digits, a.k}));
}

// `memory` as of launch().
template <typename Params>
void multiply(const bt_kernel &kernel, const Params &p, void *Params::*memory = nullptr, int64_t bytes = 0) {
    launch(kernel, p, bt_tiles(p.m, p.n), work_of({p.m, p.n, p.digits, p.k}) / 4, memory, bytes);
}

// Quantises in `order` and multiplies; `memory` as of launch().
template <typename Params>
void multiply_quantized(const bt_kernel &kernel, const Params &all, const Activations &x, int order,
                        void *Params::*memory = nullptr, int64_t bytes = 0) {
    const bt_kernel &quantizer = find_kernel(BT_OP_act_quantize, BT_CPU, x.type, "auto");
    const int64_t y_bytes = all.y_type == BT_F32 ? 4 : 2, token_block = code_rows / all.digits;
    const int64_t tokens = std::min(all.m, token_block);
    Params p = all;
    p.ldq = padded_size("columns", p.k, BT_ACT_BLOCK);
    const int64_t rows = p.digits * tokens;
    Scratch scratch(Scratch::bytes_of<int8_t>(rows * p.ldq) + Scratch::bytes_of<double>(tokens) +
                    Scratch::bytes_of<int32_t>(rows));
    int8_t *const codes = scratch.take<int8_t>(rows * p.ldq);
    double *const scales = scratch.take<double>(tokens);
    int32_t *const sums = scratch.take<int32_t>(rows);
    for (int64_t first = 0; first < all.m; first += token_block) {
        p.m = std::min(token_block, all.m - first);
        bt_act_quantize a = quantize_params(x, p.digits, first, p.m);
        a.order = order, a.ldq = p.ldq;
        a.q = codes, a.sum = sums;
        set_scales(a, scales);
        p.q = a.q, p.q_sum = a.sum, p.q_scale = x.scale ? x.scale + first : a.scale, p.q_step = a.step;
        p.y = static_cast<char *>(all.y) + first * all.ldy * y_bytes;
        quantize(quantizer, a);
        multiply(kernel, p, memory, bytes);
    }
}

} // namespace bittorch
