#include "launch.h"
#include "ops.h"
#include "trits.h"

namespace bittorch {

at::Tensor bitplane_pack(const at::Tensor &w_packed, int64_t columns) {
    const at::Tensor rows = trit_rows(w_packed, columns, "w_packed");
    const bt_kernel &kernel = find_kernel(BT_OP_bitplane_pack, device_kind(w_packed, "w_packed"), BT_I8, "auto");
    const c10::DeviceGuard guard(w_packed.device());
    bt_bitplane_pack p{};
    p.n = rows.size(0), p.k = columns, p.ldw = rows.stride(0);
    p.ldp = size_product("bytes of planes", {div_up(columns, BT_PLANE_TRITS), BT_PLANE_BLOCK_BYTES});
    at::Tensor planes = empty({p.n, p.ldp}, w_packed.options());
    if (planes.numel() == 0)
        return planes;
    p.w = rows.const_data_ptr<uint8_t>();
    p.planes = planes.mutable_data_ptr<uint8_t>();
    launch(kernel, p, p.n, work_of({p.n, div_up(columns, 16)}));
    return planes;
}

} // namespace bittorch
