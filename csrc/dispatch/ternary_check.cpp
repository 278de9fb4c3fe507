#include "launch.h"
#include "ops.h"

namespace bittorch {

at::Tensor ternary_check(const at::Tensor &w_packed, int64_t in_features) {
    check_packed(w_packed, in_features);
    const bt_kernel &kernel = find_kernel(BT_OP_ternary_check, device_kind(w_packed, "w_packed"), BT_I8, "auto");
    const c10::DeviceGuard guard(w_packed.device());
    const int64_t n = w_packed.size(0);
    const at::Tensor rows = as_rows(w_packed, "w_packed");
    at::Tensor column = empty({n}, w_packed.options().dtype(at::kLong));

    bt_ternary_check p{};
    p.w = rows.const_data_ptr<uint8_t>();
    p.column = column.mutable_data_ptr<int64_t>();
    p.n = n, p.k = in_features, p.ldw = rows.stride(0);
    launch(kernel, p, n, work_of({n, in_features}));
    return column;
}

} // namespace bittorch
