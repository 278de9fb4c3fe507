#include "launch.h"
#include "ops.h"
#include "trits.h"

namespace bittorch {

at::Tensor trit_reduce(const at::Tensor &a, const std::optional<at::Tensor> &b, int64_t columns) {
    const at::Tensor left = trit_rows(a, columns, "a"), right = b ? trit_rows(*b, columns, "b") : at::Tensor();
    check_same_device({{"a", &a}, {"b", or_null(b)}});
    const bt_kernel &kernel = find_kernel(BT_OP_trit_reduce, device_kind(a, "a"), BT_I8, "auto");
    const c10::DeviceGuard guard(a.device());
    bt_trit_reduce p{};
    p.n = common_rows(left, right), p.k = columns;
    const int64_t chunks = bt_reduce_chunks(columns);
    const int64_t tiles = size_product("tiles", {p.n, chunks});
    at::Tensor counts = empty({p.n, chunks, 2}, a.options().dtype(at::kLong));
    p.a = left.const_data_ptr<uint8_t>();
    p.b = b ? right.const_data_ptr<uint8_t>() : nullptr;
    p.counts = counts.mutable_data_ptr<int64_t>();
    p.lda = row_step(left, p.n), p.ldb = b ? row_step(right, p.n) : 0;
    if (tiles > 0)
        launch(kernel, p, tiles, work_of({p.n, div_up(columns, 16)}));
    return chunks == 1 ? counts.view({p.n, 2}) : counts.sum(1);
}

} // namespace bittorch
