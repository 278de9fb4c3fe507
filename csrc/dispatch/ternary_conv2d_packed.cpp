#include "by_torch.h"
#include "launch.h"
#include "ops.h"

namespace bittorch {
namespace {

using at::IntArrayRef;
using at::Tensor;

// Bytes of padded input that are made at once: bounds the scratch whatever the batch.
constexpr int64_t scratch_bytes = 1 << 22;

struct Geometry {
    IntArrayRef kernel_size, stride, padding, dilation;
};

void check_pair(const char *name, IntArrayRef values, int64_t least) {
    TORCH_CHECK_VALUE(values.size() == 2 && values[0] >= least && values[1] >= least, name,
                      " must be two integers of at least ", least, ", got ", values);
}

int64_t out_size(const Geometry &g, int64_t in, int d, const Tensor &x) {
    const int64_t padded = size_sum("height or width and padding", {in, g.padding[d], g.padding[d]});
    const int64_t reach = size_product("dilation times (kernel_size - 1)", {g.dilation[d], g.kernel_size[d] - 1});
    TORCH_CHECK_VALUE(padded > reach, "the padded input is smaller than the kernel: x ", x.sizes(), " with padding ",
                      g.padding, " against kernel_size ", g.kernel_size, " with dilation ", g.dilation);
    return (padded - reach - 1) / g.stride[d] + 1;
}

// Sizes and steps, checked. Steps that lead nowhere are 1, whatever the caller gives.
bt_ternary_conv2d_packed problem_of(const Tensor &x, const Tensor &w_packed, const Geometry &g, int64_t groups) {
    TORCH_CHECK_VALUE(x.dim() == 4, "x must be (samples, channels, height, width), got ", x.sizes());
    check_pair("kernel_size", g.kernel_size, 1);
    check_pair("stride", g.stride, 1);
    check_pair("padding", g.padding, 0);
    check_pair("dilation", g.dilation, 1);
    bt_ternary_conv2d_packed p{};
    p.samples = x.size(0), p.channels = x.size(1), p.height = x.size(2), p.width = x.size(3);
    p.n = w_packed.dim() == 2 ? w_packed.size(0) : 0;
    TORCH_CHECK_VALUE(groups >= 1 && p.channels % groups == 0 && p.n % groups == 0,
                      "groups must divide channels and out_channels, got groups=", groups, ", ", p.channels,
                      " channels in x and w_packed ", w_packed.sizes());
    p.groups = groups;
    p.kernel_h = g.kernel_size[0], p.kernel_w = g.kernel_size[1];
    p.pad_h = g.padding[0], p.pad_w = g.padding[1];
    p.k = size_product("weights of a filter", {p.channels / p.groups, p.kernel_h, p.kernel_w});
    p.out_h = out_size(g, p.height, 0, x), p.out_w = out_size(g, p.width, 1, x);
    size_product("output positions", {p.out_h, p.out_w});
    size_product("columns of the patches", {p.channels, p.kernel_h, p.kernel_w});
    p.stride_h = p.out_h == 1 ? 1 : g.stride[0], p.stride_w = p.out_w == 1 ? 1 : g.stride[1];
    p.dilation_h = p.kernel_h == 1 ? 1 : g.dilation[0], p.dilation_w = p.kernel_w == 1 ? 1 : g.dilation[1];
    return p;
}

// Whether patches read so little of the padded input that a copy of it would be mostly zeros, or no memory holds it.
bool is_mostly_padding(const bt_ternary_conv2d_packed &p) {
    const auto area = [](int64_t height, int64_t width) {
        return static_cast<double>(height) * static_cast<double>(width);
    };
    const double padded = area(p.height + 2 * p.pad_h, p.width + 2 * p.pad_w);
    const double read = area(p.out_h, p.out_w) * area(p.kernel_h, p.kernel_w);
    return padded > 65536 && padded > 4 * std::max(area(p.height, p.width), read);
}

// The patches side by side, an image whose convolution with stride kernel_size and without padding is that of x.
Tensor side_by_side(const Tensor &x, bt_ternary_conv2d_packed &p) {
    const Tensor patches = patches_of(x.scalar_type() == at::kChar ? x.to(at::kFloat) : x, p).to(x.scalar_type());
    const Tensor apart = patches.view({x.size(0), x.size(1), p.kernel_h, p.kernel_w, p.out_h, p.out_w});
    p.height = p.out_h * p.kernel_h, p.width = p.out_w * p.kernel_w;
    p.stride_h = p.kernel_h, p.stride_w = p.kernel_w;
    p.pad_h = p.pad_w = 0, p.dilation_h = p.dilation_w = 1;
    return apart.permute({0, 1, 4, 2, 5, 3}).reshape({x.size(0), x.size(1), p.height, p.width});
}

// Where the codes or digits of some samples and their scales lie.
struct Codes {
    int8_t *q;
    double *scales; // floats with one digit
};

void quantize(bt_ternary_conv2d_packed &p, const void *x, int x_type, const Codes &codes) {
    const bt_kernel &quantizer = find_kernel(BT_OP_act_quantize, BT_CPU, x_type, "auto");
    bt_act_quantize a{};
    a.x = x, a.x_type = x_type, a.q = codes.q, a.digits = p.digits, a.order = BT_ORDER_NATURAL;
    a.m = p.samples, a.k = a.ldx = a.ldq = size_product("values of a sample", {p.channels, p.height, p.width});
    a.scale = p.digits == 1 ? reinterpret_cast<float *>(codes.scales) : nullptr;
    a.step = p.digits == 1 ? nullptr : codes.scales;
    launch(quantizer, a, a.m, work_of({a.m, a.k, a.digits}));
    p.x = codes.q, p.x_type = BT_I8, p.q_scale = a.scale, p.q_step = a.step;
}

// Elements of the padded images of a sample; after this the sizes of bt_conv_*() cannot wrap.
int64_t padded_elements(const bt_ternary_conv2d_packed &p) {
    const int64_t row = padded_size("the padded width", p.width + 2 * p.pad_w, p.stride_w);
    return size_product("elements of the padded input", {p.digits, p.channels, p.height + 2 * p.pad_h, row});
}

// `floating`: the products are; else the activations are quantised here, where x does not hold codes with their scales.
void run_on_cpu(const bt_kernel &kernel, const bt_ternary_conv2d_packed &all, bool floating) {
    bt_ternary_conv2d_packed p = all;
    p.x_type = floating ? all.x_type : BT_I8;
    const bool quantizes = !floating && all.x_type != BT_I8;
    const int64_t x_bytes = all.x_type == BT_F32 ? 4 : all.x_type == BT_I8 ? p.digits : 2;
    const int64_t y_bytes = all.y_type == BT_F32 ? 4 : 2, size = bt_conv_size(&p), image = padded_elements(p);
    const int64_t elements = size_product("values of a sample", {p.channels, p.height, p.width});
    const int64_t patch_elements =
        size_product("elements of a patch", {p.digits, div_up(p.k, 4), 4, BT_CONV_POSITIONS});
    const int64_t patch_bytes =
        size_product("bytes of a patch", {size_sum("elements of a patch", {patch_elements, BT_CONV_SLACK}), size});
    const int64_t image_bytes = std::max<int64_t>(1, size_product("bytes of the padded input", {image, size}));
    const int64_t block = std::clamp<int64_t>(scratch_bytes / image_bytes, 1, all.samples);
    const int64_t code_count = quantizes ? size_product("codes of the samples", {block, p.digits, elements}) : 0;
    const int64_t xp_bytes = size_sum("bytes of the padded input", {block * image_bytes, BT_CONV_SLACK * size});
    Scratch scratch(Scratch::bytes_of<char>(xp_bytes) + Scratch::bytes_of<int8_t>(code_count) +
                    Scratch::bytes_of<double>(block));
    p.xp = scratch.take<char>(xp_bytes);
    const Codes codes{scratch.take<int8_t>(code_count), scratch.take<double>(block)};
    for (int64_t first = 0; first < all.samples; first += block) {
        p.samples = std::min(block, all.samples - first);
        p.x = static_cast<const char *>(all.x) + first * elements * x_bytes;
        p.y = static_cast<char *>(all.y) + first * all.n * all.out_h * all.out_w * y_bytes;
        p.q_scale = all.q_scale ? all.q_scale + first : nullptr, p.q_step = all.q_step ? all.q_step + first : nullptr;
        if (quantizes)
            quantize(p, p.x, all.x_type, codes);
        const int64_t planes = p.samples * p.digits * p.channels;
        parallel_tiles(planes, work_of({planes, bt_conv_plane(&p)}),
                       [&](int64_t begin, int64_t end) { bt_ternary_conv2d_packed_prepare(&p, begin, end); });
        const int64_t products = work_of({p.digits, p.samples, p.n, p.k, p.out_h, p.out_w});
        launch(kernel, p, bt_conv_tiles(&p), floating ? products : products / 4, &bt_ternary_conv2d_packed::patch,
               patch_bytes);
    }
}

} // namespace

Tensor ternary_conv2d_packed(const Tensor &x, const Tensor &w_packed, const Tensor &scale,
                             const std::optional<Tensor> &bias, IntArrayRef kernel_size, IntArrayRef stride,
                             IntArrayRef padding, IntArrayRef dilation, int64_t groups, int64_t activation_bits,
                             const std::string &variant) {
    const int x_type = float_type(x, "x");
    check_same_device({{"x", &x}, {"w_packed", &w_packed}, {"scale", &scale}, {"bias", or_null(bias)}});
    bt_ternary_conv2d_packed p = problem_of(x, w_packed, {kernel_size, stride, padding, dilation}, groups);
    check_packed(w_packed, p.k);
    check_bias(bias, p.n);
    p.digits = activation_bits ? digit_count(activation_bits, "activation_bits") : 1;
    TORCH_CHECK_VALUE(!activation_bits || p.k <= BT_CONV_MAX_K, "a patch must hold at most ", int64_t{BT_CONV_MAX_K},
                      " int8 activations for int32 sums, got ", p.k);
    const ScaleLayout layout = check_scale(scale, p.n, p.k);

    const c10::DeviceGuard guard(x.device());
    const at::MemoryFormat format = x.suggest_memory_format(); // of the result, as in torch
    const bool on_cpu = device_kind(x, "x") == BT_CPU && variant != "unfold";
    Tensor y;
    if (on_cpu || p.samples == 0 || p.n == 0)
        y = empty({p.samples, p.n, p.out_h, p.out_w}, x.options());
    if (p.samples == 0 || p.n == 0)
        return y.contiguous(format);
    if (!on_cpu)
        return convolve_unfolded(x.contiguous(), w_packed, scale, bias, p, activation_bits, variant).contiguous(format);
    const bt_kernel &kernel =
        find_kernel(BT_OP_ternary_conv2d_packed, BT_CPU, activation_bits ? BT_I8 : x_type, variant);
    Tensor images = x.contiguous(), steps;
    const Tensor w = as_rows(w_packed, "w_packed"), scales = scale.contiguous();
    const Tensor biases = bias ? bias->contiguous() : Tensor();
    p.x_type = p.y_type = x_type;
    if (is_mostly_padding(p)) {
        if (activation_bits) { // of the whole sample, read or not
            std::tie(images, steps) = act_quantize(images.flatten(1), activation_bits);
            images = images.view({p.samples * p.digits, p.channels, p.height, p.width});
            p.x_type = BT_I8;
            p.q_scale = p.digits == 1 ? steps.const_data_ptr<float>() : nullptr;
            p.q_step = p.digits == 1 ? nullptr : steps.const_data_ptr<double>();
        }
        images = side_by_side(images, p);
    }
    p.x = images.const_data_ptr();
    p.w = w.const_data_ptr<uint8_t>();
    p.scale = scales.const_data_ptr<float>();
    set_bias(p, biases);
    p.y = y.mutable_data_ptr();
    p.ldw = w.stride(0), p.lds = layout.lds, p.group = layout.group;
    run_on_cpu(kernel, p, activation_bits == 0);
    return y.contiguous(format);
}

} // namespace bittorch
