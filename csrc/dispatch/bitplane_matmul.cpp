#include "launch.h"
#include "ops.h"
#include "trits.h"

namespace bittorch {

// b is packed here where it is not in planes yet: that costs as much as one product with a few rows.
at::Tensor bitplane_matmul(const at::Tensor &a, const at::Tensor &b, int64_t columns, const std::string &layout) {
    TORCH_CHECK_VALUE(layout == "rows" || layout == "planes", "layout must be 'rows' or 'planes', got '", layout, "'");
    TORCH_CHECK_VALUE(columns < int64_t{1} << 31, "columns must be below 2^31, whose sums int32 holds, got ", columns);
    const bool in_rows = layout == "rows";
    check_same_device({{"a", &a}, {"b", &b}});
    const bt_kernel &kernel = find_kernel(BT_OP_bitplane_matmul, device_kind(a, "a"), BT_I8, "auto");
    const c10::DeviceGuard guard(a.device());
    const at::Tensor left = bitplane_pack(trit_rows(a, columns, "a"), columns);
    if (!in_rows) {
        TORCH_CHECK_TYPE(b.scalar_type() == at::kByte, "b must be uint8, got ", dtype_name(b));
        TORCH_CHECK_VALUE(b.dim() == 2 && b.size(1) == left.size(1), "b must be (rows, ", left.size(1),
                          ") uint8 planes for columns=", columns, ", got ", b.sizes());
    }
    const at::Tensor right = in_rows ? bitplane_pack(trit_rows(b, columns, "b"), columns) : as_rows(b, "b");
    bt_bitplane_matmul p{};
    p.m = left.size(0), p.n = right.size(0), p.blocks = div_up(columns, BT_PLANE_TRITS);
    size_product("elements of the result", {p.m, p.n});
    const auto options = a.options().dtype(at::kInt);
    if (p.blocks == 0)
        return empty({p.m, p.n}, options).zero_();
    at::Tensor y = empty({p.m, p.n}, options);
    if (y.numel() == 0)
        return y;
    p.a = left.const_data_ptr<uint8_t>();
    p.b = right.const_data_ptr<uint8_t>();
    p.y = y.mutable_data_ptr<int32_t>();
    p.lda = left.stride(0), p.ldb = right.stride(0), p.ldy = p.n;
    launch(kernel, p, bt_tiles(p.m, p.n), work_of({p.m, p.n, div_up(columns, 16)}));
    return y;
}

} // namespace bittorch
