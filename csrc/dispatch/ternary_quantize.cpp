#include "launch.h"
#include "ops.h"

namespace bittorch {

#define BT_TEXT(name, text, property) text,
constexpr const char *methods[] = {BT_METHODS(BT_TEXT)};
constexpr const char *scale_rules[] = {BT_SCALES(BT_TEXT)};
#undef BT_TEXT
constexpr const char *granularities[] = {"tensor", "channel", "group"};

static std::vector<int64_t> scale_shape(const bt_ternary_quantize &p) {
    if (p.lds == 0)
        return {1};
    return p.group == p.k ? std::vector<int64_t>{p.n} : std::vector<int64_t>{p.n, p.lds};
}

static void set_granularity(bt_ternary_quantize &p, const std::string &granularity, int64_t group_size) {
    p.group = p.k;
    p.lds = number_of(granularity, 3, [](int i) { return granularities[i]; }, "granularity") == 0 ? 0 : 1;
    if (granularity != "group")
        return;
    TORCH_CHECK_VALUE(group_size > 0 && group_size % 4 == 0, "group_size must be a positive multiple of 4, got ",
                      group_size);
    TORCH_CHECK_VALUE(p.k % group_size == 0, "group_size must divide in_features, got group_size=", group_size,
                      " and in_features=", p.k);
    if (p.k == 0)
        return; // an empty row has no groups; it keeps one scale
    p.group = group_size;
    p.lds = p.k / group_size;
}

std::tuple<at::Tensor, at::Tensor> ternary_quantize(const at::Tensor &w, const std::string &method,
                                                    const std::string &scale_rule, double threshold_factor,
                                                    const std::string &granularity, int64_t group_size) {
    TORCH_CHECK_VALUE(w.dim() == 2, "w must be (out_features, in_features), got ", w.sizes());
    TORCH_CHECK_VALUE(threshold_factor >= 0 && threshold_factor <= 1, "threshold_factor must be in [0, 1], got ",
                      threshold_factor);
    bt_ternary_quantize p{};
    p.w_type = float_type(w, "w");
    p.method = number_of(method, BT_METHOD_COUNT, [](int i) { return methods[i]; }, "method");
    p.rule = number_of(scale_rule, BT_SCALE_COUNT, [](int i) { return scale_rules[i]; }, "scale");
    p.threshold_factor = static_cast<float>(threshold_factor);
    p.n = w.size(0), p.k = w.size(1);
    set_granularity(p, granularity, group_size);
    const bt_kernel &kernel = find_kernel(BT_OP_ternary_quantize, device_kind(w, "w"), p.w_type, "auto");

    const c10::DeviceGuard guard(w.device());
    const at::Tensor rows = as_rows(w, "w");
    at::Tensor packed = empty({p.n, div_up(p.k, 4)}, w.options().dtype(at::kByte));
    at::Tensor scale = empty(scale_shape(p), w.options().dtype(at::kFloat));
    if (w.numel() == 0)
        return {packed, scale.fill_(BT_SCALE_EPS)};
    p.w = rows.const_data_ptr();
    p.packed = packed.mutable_data_ptr<uint8_t>();
    p.scale = scale.mutable_data_ptr<float>();
    p.ldx = rows.stride(0), p.ldw = packed.size(1);
    const Workspace workspace(kernel.device == BT_GPU ? bt_ternary_quantize_cuda_workspace(&p) : 0, w);
    p.workspace = workspace.data();
    launch(kernel, p, bt_ternary_quantize_tiles(&p), work_of({p.n, p.k}), &bt_ternary_quantize::workspace,
           static_cast<int64_t>(bt_ternary_quantize_workspace(&p)));
    return {packed, scale};
}

} // namespace bittorch
