#include "blocks.h"
#include "launch.h"
#include "ops.h"

namespace bittorch {

int block_number(const std::string &kind) {
    return number_of(kind, BT_BLOCK_COUNT, bt_block_name, "kind");
}

void check_blocks(const at::Tensor &blocks, const std::string &kind, int block, int64_t columns) {
    TORCH_CHECK_TYPE(blocks.scalar_type() == at::kByte, "blocks must be uint8, got ", dtype_name(blocks));
    TORCH_CHECK_VALUE(columns >= 0 && columns % bt_block_weights(block) == 0, columns,
                      " columns are not cut into blocks of ", bt_block_weights(block), " weights of ", kind);
    TORCH_CHECK_VALUE(blocks.dim() == 2 && blocks.size(1) == bt_block_row_bytes(block, columns),
                      "blocks must be (rows, ", bt_block_row_bytes(block, columns), ") for ", columns, " columns of ",
                      kind, ", got ", blocks.sizes());
}

at::Tensor block_unpack(const at::Tensor &blocks, const std::string &kind, int64_t columns, at::ScalarType dtype) {
    bt_block_unpack p{};
    p.block = block_number(kind);
    check_blocks(blocks, kind, p.block, columns);
    at::Tensor y = empty({blocks.size(0), columns}, blocks.options().dtype(dtype));
    p.y_type = float_type(y, "dtype");
    const bt_kernel &kernel = find_kernel(BT_OP_block_unpack, device_kind(blocks, "blocks"), p.y_type, "auto");
    if (y.numel() == 0)
        return y;
    const at::Tensor rows = as_rows(blocks, "blocks");
    p.w = rows.const_data_ptr<uint8_t>();
    p.y = y.mutable_data_ptr();
    p.n = y.size(0), p.k = columns, p.ldw = rows.stride(0), p.ldy = columns;
    launch(kernel, p, p.n, work_of({p.n, p.k}));
    return y;
}

} // namespace bittorch
