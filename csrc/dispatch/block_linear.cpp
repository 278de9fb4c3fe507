#include "blocks.h"
#include "launch.h"
#include "no_gradient.h"
#include "ops.h"

namespace bittorch {

at::Tensor block_linear(const at::Tensor &x, const at::Tensor &blocks, const std::string &kind) {
    float_type(x, "x");
    TORCH_CHECK_VALUE(x.dim() >= 1, "x must have at least one dimension, got a scalar");
    bt_block_linear p{};
    p.block = block_number(kind);
    check_blocks(blocks, kind, p.block, x.size(-1));
    check_same_device({{"x", &x}, {"blocks", &blocks}});
    check_no_gradient("block_linear", {&x});
    const bt_kernel &kernel = find_kernel(BT_OP_block_linear, device_kind(x, "x"), BT_F32, "auto");
    const at::Tensor tokens = as_rows(x.to(at::kFloat), "x"), rows = as_rows(blocks, "blocks");
    at::Tensor y = empty(with_last(x, rows.size(0)), x.options().dtype(at::kFloat));
    if (y.numel() != 0) {
        p.x = tokens.const_data_ptr<float>();
        p.w = rows.const_data_ptr<uint8_t>();
        p.y = y.mutable_data_ptr<float>();
        p.m = tokens.size(0), p.n = rows.size(0), p.k = tokens.size(1);
        p.ldx = tokens.stride(0), p.ldw = rows.stride(0), p.ldy = p.n;
        launch(kernel, p, bt_tiles(p.m, p.n), work_of({p.m, p.n, p.k}));
    }
    return y.to(x.scalar_type());
}

} // namespace bittorch
