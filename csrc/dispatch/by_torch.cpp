#include "by_torch.h"
#include "ops.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/im2col.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>

namespace bittorch {

using at::Tensor;

// Bytes of the weight that are decoded at once: they stay in the L2 of the devices where this is chosen.
constexpr int64_t decoded_bytes = 16 << 20;

// The weight is decoded some rows at a time, and torch multiplies: cuBLAS on a GPU, with fp32 sums.
void multiply_unpacked(const Tensor &rows, const Tensor &w, const Tensor &scale, const std::optional<Tensor> &bias,
                       const Tensor &y) {
    const int64_t n = w.size(0), k = rows.size(1),
                  row_bytes = std::max<int64_t>(1, size_product("bytes of a row", {k, rows.element_size()}));
    const int64_t chunk = std::max<int64_t>(256, decoded_bytes / row_bytes / 64 * 64);
    const Tensor biases = bias ? bias->to(rows.scalar_type()) : Tensor();
    for (int64_t first = 0; first < n && rows.size(0) > 0; first += chunk) {
        const int64_t count = std::min(chunk, n - first);
        const Tensor scales = scale.numel() == 1 ? scale : scale.narrow(0, first, count);
        const Tensor dense = ternary_unpack(w.narrow(0, first, count), scales, k, rows.scalar_type());
        Tensor out = y.narrow(1, first, count);
        if (bias)
            at::addmm_out(out, biases.narrow(0, first, count), rows, dense.t());
        else
            at::mm_out(out, rows, dense.t());
    }
}

Tensor patches_of(const Tensor &x, const bt_ternary_conv2d_packed &p) {
    if (x.numel() == 0) // torch refuses it
        return at::zeros({x.size(0), x.size(1) * p.kernel_h * p.kernel_w, p.out_h * p.out_w}, x.options());
    // A step that leads nowhere is 1 in p, which would be a step to torch.
    const int64_t stride_h = p.out_h == 1 ? p.height + 2 * p.pad_h : p.stride_h;
    const int64_t stride_w = p.out_w == 1 ? p.width + 2 * p.pad_w : p.stride_w;
    return at::im2col(x, {p.kernel_h, p.kernel_w}, {p.dilation_h, p.dilation_w}, {p.pad_h, p.pad_w},
                      {stride_h, stride_w});
}

// The digits of a code, the lowest first along `dim`, as one float64 number.
static Tensor joined_digits(const Tensor &digits, int64_t dim) {
    Tensor joined = digits.select(dim, digits.size(dim) - 1);
    for (int64_t d = digits.size(dim) - 2; d >= 0; d--)
        joined = joined * 256 + digits.select(dim, d);
    return joined;
}

Tensor multiply_int8(const Tensor &x, const Tensor &weight, const Tensor &scale, const std::optional<Tensor> &bias,
                     int64_t bits) {
    constexpr int64_t columns = 512; // 2^14 a product: sums are below 2^24, which fp32 and tensor cores hold
    const Tensor rows = as_rows(x, "x");
    const auto [q, step] = act_quantize(rows, bits);
    const int64_t digits = bits / 8, n = weight.size(0), k = rows.size(1);
    const Tensor codes = q.view({rows.size(0) * digits, k});
    Tensor y = at::zeros({rows.size(0), n}, x.options());
    for (int64_t first = 0; first < n && rows.size(0) > 0; first += columns) {
        const int64_t count = std::min(columns, n - first);
        Tensor sum = at::zeros({codes.size(0), count}, codes.options().dtype(at::kDouble));
        for (int64_t c = 0; c < k; c += columns) {
            const int64_t width = std::min(columns, k - c);
            const Tensor part = weight.narrow(0, first, count).narrow(1, c, width).to(at::kFloat);
            sum += at::mm(codes.narrow(1, c, width).to(at::kFloat), part.t());
        }
        const Tensor factor = scale.narrow(0, first, count);
        Tensor out = bits == 8 ? sum.to(at::kFloat) * (step * factor)
                               : (joined_digits(sum.view({-1, digits, count}), 1) * step * factor.to(at::kDouble));
        out = out.to(at::kFloat);
        if (bias)
            out = out + bias->narrow(0, first, count).to(at::kFloat);
        y.narrow(1, first, count).copy_(out);
    }
    return y.view(with_last(x, n));
}

namespace {

// Patches by torch, (groups, samples, positions, k).
Tensor unfold(const Tensor &x, const bt_ternary_conv2d_packed &p) {
    return patches_of(x, p).view({p.samples, p.groups, p.k, p.out_h * p.out_w}).permute({1, 0, 3, 2});
}

// The exact sums of integers below 2^53, as float64, then the epilogue of the header with one rounding an operation.
Tensor unfolded_codes(const Tensor &x, const Tensor &w_packed, const Tensor &scale, const bt_ternary_conv2d_packed &p,
                      int64_t bits) {
    const auto [q, q_scale] = act_quantize(x.flatten(1), bits);
    const Tensor codes = bits > 8 ? joined_digits(q.to(at::kDouble), 1) : q.to(at::kDouble);
    const Tensor patches = unfold(codes.view(x.sizes()), p);
    const Tensor weight = ternary_unpack(w_packed, std::nullopt, p.k, at::kChar).to(at::kDouble);
    const Tensor scales = scale.dim() == 2 ? scale : scale.numel() == 1 ? scale.expand({p.n, 1}) : scale.view({p.n, 1});
    const Tensor step = q_scale.view({p.samples, 1, 1});
    const int64_t rows = p.n / p.groups, columns = p.k / scales.size(1);
    std::vector<Tensor> parts;
    for (int64_t g = 0; g < p.groups; g++) {
        Tensor sum = at::zeros({p.samples, p.out_h * p.out_w, rows}, q_scale.options());
        for (int64_t s = 0; s < scales.size(1); s++) {
            const Tensor part = weight.narrow(0, g * rows, rows).narrow(1, s * columns, columns);
            const Tensor dot = at::matmul(patches[g].narrow(-1, s * columns, columns), part.t());
            const Tensor factor = scales.narrow(0, g * rows, rows).select(1, s);
            sum = sum + (bits == 8 ? dot.to(at::kFloat) * (step * factor) : dot * step * factor.to(at::kDouble));
        }
        parts.push_back(sum.to(at::kFloat));
    }
    return at::cat(parts, -1);
}

Tensor unfolded_floats(const Tensor &x, const Tensor &w_packed, const Tensor &scale, const bt_ternary_conv2d_packed &p,
                       const std::string &variant) {
    const Tensor patches = unfold(x, p);
    const int64_t rows = p.n / p.groups;
    std::vector<Tensor> parts;
    for (int64_t g = 0; g < p.groups; g++)
        parts.push_back(
            ternary_linear_packed(patches[g].contiguous().to(at::kFloat), w_packed.narrow(0, g * rows, rows),
                                  scale.numel() == 1 ? scale : scale.narrow(0, g * rows, rows), std::nullopt, variant));
    return at::cat(parts, -1);
}

} // namespace

Tensor convolve_unfolded(const Tensor &x, const Tensor &w_packed, const Tensor &scale,
                         const std::optional<Tensor> &bias, const bt_ternary_conv2d_packed &p, int64_t bits,
                         const std::string &variant) {
    Tensor y = bits ? unfolded_codes(x, w_packed, scale, p, bits)
                    : unfolded_floats(x, w_packed, scale, p, variant == "unfold" ? "auto" : variant);
    if (bias)
        y = y + bias->to(at::kFloat);
    return y.to(x.scalar_type()).transpose(1, 2).contiguous().view({p.samples, p.n, p.out_h, p.out_w});
}

} // namespace bittorch
