#include "launch.h"
#include "ops.h"

namespace bittorch {

// Raises when a row holds the code that pack writes for anything but -1, 0 and +1.
static void refuse_illegal(const at::Tensor &codes, const at::Tensor &packed) {
    const at::Tensor column = ternary_check(packed, codes.size(1)).cpu();
    const int64_t *first = column.const_data_ptr<int64_t>();
    for (int64_t r = 0; r < column.numel(); r++)
        TORCH_CHECK_VALUE(first[r] < 0, "codes must be -1, 0 or +1, got ", codes[r][first[r]].item<int>(), " at row ",
                          r, ", column ", first[r]);
}

at::Tensor ternary_pack(const at::Tensor &codes, bool check) {
    TORCH_CHECK_TYPE(codes.scalar_type() == at::kChar, "codes must be int8, got ", dtype_name(codes));
    TORCH_CHECK_VALUE(codes.dim() == 2, "codes must be (out_features, in_features), got ", codes.sizes());
    const bt_kernel &kernel = find_kernel(BT_OP_ternary_pack, device_kind(codes, "codes"), BT_I8, "auto");
    const c10::DeviceGuard guard(codes.device());
    const int64_t n = codes.size(0), k = codes.size(1);
    const at::Tensor rows = as_rows(codes, "codes");
    at::Tensor packed = empty({n, div_up(k, 4)}, codes.options().dtype(at::kByte));
    if (packed.numel() == 0) // of any number of empty rows
        return packed;

    bt_ternary_pack p{};
    p.codes = static_cast<const int8_t *>(rows.const_data_ptr());
    p.packed = static_cast<uint8_t *>(packed.mutable_data_ptr());
    p.n = n, p.k = k, p.ldc = rows.stride(0), p.ldw = packed.size(1);
    launch(kernel, p, n, work_of({n, k}));
    if (check) // waits for the device
        refuse_illegal(codes, packed);
    return packed;
}

} // namespace bittorch
