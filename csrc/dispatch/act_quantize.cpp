#include "launch.h"
#include "ops.h"

namespace bittorch {

std::tuple<at::Tensor, at::Tensor> act_quantize(const at::Tensor &x, int64_t bits,
                                                const std::optional<at::Tensor> &norm_weight, double norm_eps) {
    bt_act_quantize p{};
    p.digits = digit_count(bits, "bits");
    p.x_type = float_type(x, "x");
    check_norm(norm_weight, norm_eps, x);
    const bt_kernel &kernel = find_kernel(BT_OP_act_quantize, device_kind(x, "x"), p.x_type, "auto");
    const c10::DeviceGuard guard(x.device());
    const at::Tensor rows = as_rows(x, "x");
    const bool one = p.digits == 1;
    at::DimVector sizes(x.sizes());
    if (!one)
        sizes.insert(sizes.end() - 1, p.digits);
    at::Tensor q = empty(sizes, x.options().dtype(at::kChar));
    at::Tensor scale = empty(with_last(x, 1), x.options().dtype(one ? at::kFloat : at::kDouble));
    if (scale.numel() == 0)
        return {q, scale};
    p.x = rows.const_data_ptr();
    p.q = static_cast<int8_t *>(q.mutable_data_ptr());
    p.scale = one ? scale.mutable_data_ptr<float>() : nullptr;
    p.step = one ? nullptr : scale.mutable_data_ptr<double>();
    p.m = rows.size(0), p.k = rows.size(1), p.ldx = rows.stride(0), p.ldq = p.k;
    p.order = BT_ORDER_NATURAL;
    const at::Tensor weight = norm_weight ? norm_weight->contiguous() : at::Tensor();
    set_norm(p, weight, norm_eps);
    launch(kernel, p, p.m, work_of({p.digits, p.m, p.k}));
    return {q, scale};
}

} // namespace bittorch
