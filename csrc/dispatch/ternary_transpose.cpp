#include "launch.h"
#include "ops.h"

namespace bittorch {

at::Tensor ternary_transpose(const at::Tensor &w_packed, int64_t in_features) {
    check_packed(w_packed, in_features);
    const bt_kernel &kernel = find_kernel(BT_OP_ternary_transpose, device_kind(w_packed, "w_packed"), BT_I8, "auto");
    const c10::DeviceGuard guard(w_packed.device());
    const at::Tensor rows = as_rows(w_packed, "w_packed");
    const int64_t n = w_packed.size(0), k = in_features;
    at::Tensor transposed = empty({k, div_up(n, 4)}, w_packed.options());
    if (transposed.numel() == 0)
        return transposed;

    bt_ternary_transpose p{};
    p.w = rows.const_data_ptr<uint8_t>();
    p.t = transposed.mutable_data_ptr<uint8_t>();
    p.n = n, p.k = k, p.ldw = rows.stride(0), p.ldt = transposed.size(1);
    launch(kernel, p, div_up(k, BT_TRANSPOSE_TILE), work_of({n, k}));
    return transposed;
}

} // namespace bittorch
