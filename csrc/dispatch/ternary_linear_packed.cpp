#include "by_torch.h"
#include "launch.h"
#include "ops.h"

namespace bittorch {

// Tokens whose activations are prepared at once: bounds the scratch at 1024 rows whatever the batch.
constexpr int64_t token_block = 1024;

static void run_on_cpu(const bt_kernel &kernel, const bt_ternary_linear_packed &all, int64_t x_bytes, int64_t y_bytes) {
    bt_ternary_linear_packed p = all;
    p.xp_type = bt_packed_xp_type(kernel.reads);
    p.xp_natural = bt_packed_natural(&p, kernel.reads);
    const bool is_x = p.xp_natural && p.x_type == BT_F32; // nothing to prepare
    p.ldxp = is_x ? p.ldx : padded_size("columns", p.k, BT_FLOAT_BLOCK);
    const int64_t rows = is_x ? 0 : std::min(all.m, token_block), element = p.xp_type == BT_F32 ? 4 : 2;
    const int64_t bytes = size_product("bytes of scratch", {rows, p.ldxp, element});
    Scratch scratch(Scratch::bytes_of<char>(bytes));
    void *const prepared = scratch.take<char>(bytes);
    for (int64_t first = 0; first < all.m; first += token_block) {
        p.m = std::min(token_block, all.m - first);
        p.x = static_cast<const char *>(all.x) + first * all.ldx * x_bytes;
        p.y = static_cast<char *>(all.y) + first * all.ldy * y_bytes;
        p.xp = is_x ? const_cast<void *>(p.x) : prepared;
        if (!is_x)
            parallel_tiles(p.m, work_of({p.m, p.k}),
                           [&](int64_t begin, int64_t end) { bt_ternary_linear_packed_prepare(&p, begin, end); });
        launch(kernel, p, bt_tiles(p.m, p.n), work_of({p.m, p.n, p.k}));
    }
}

at::Tensor ternary_linear_packed(const at::Tensor &x, const at::Tensor &w_packed, const at::Tensor &scale,
                                 const std::optional<at::Tensor> &bias, const std::string &variant) {
    bt_ternary_linear_packed p{};
    p.x_type = p.y_type = float_type(x, "x");
    const int device = device_kind(x, "x");
    check_same_device({{"x", &x}, {"w_packed", &w_packed}, {"scale", &scale}, {"bias", or_null(bias)}});
    const at::Tensor rows = as_rows(x, "x");
    p.m = rows.size(0), p.k = rows.size(1), p.n = w_packed.dim() == 2 ? w_packed.size(0) : 0;
    check_packed(w_packed, p.k);
    check_bias(bias, p.n);
    const ScaleLayout layout = check_scale(scale, p.n, p.k);

    const c10::DeviceGuard guard(x.device());
    const at::Tensor w = as_rows(w_packed, "w_packed");
    const at::Tensor scales = scale.contiguous();
    const at::Tensor biases = bias ? bias->contiguous() : at::Tensor();
    at::Tensor y = empty(with_last(x, p.n), x.options());
    const bool halves = p.x_type != BT_F32;
    const bt_problem problem = problem_of(p.m, p.n, p.k, layout.group, 1, halves, device);
    // By name a CPU does it too, for comparison.
    const bool unpack_on_cpu = device == BT_CPU && variant == "unpack";
    const bt_kernel &kernel =
        find_kernel(BT_OP_ternary_linear_packed, device, p.x_type, unpack_on_cpu ? "auto" : variant, &problem);
    if (y.numel() == 0)
        return y;
    if (unpack_on_cpu || kernel.needs & BT_GPU_UNPACK) {
        multiply_unpacked(rows, w, scales, bias, y.view({p.m, p.n}));
        return y;
    }
    const at::Tensor x_rows = aligned_rows(rows, kernel), w_rows = aligned_rows(w, kernel);
    p.x = x_rows.const_data_ptr();
    p.w = w_rows.const_data_ptr<uint8_t>();
    p.scale = scales.const_data_ptr<float>();
    set_bias(p, biases);
    p.y = y.mutable_data_ptr();
    p.ldx = x_rows.stride(0), p.ldw = w_rows.stride(0), p.ldy = p.n, p.lds = layout.lds, p.group = layout.group;
    if (kernel.device == BT_GPU) {
        const Workspace workspace(bt_ternary_linear_packed_cuda_workspace(&p), x);
        p.workspace = workspace.data(), p.workspace_bytes = workspace.bytes();
        launch(kernel, p, bt_tiles(p.m, p.n), work_of({p.m, p.n, p.k}));
    } else {
        run_on_cpu(kernel, p, x.element_size(), y.element_size());
    }
    return y;
}

} // namespace bittorch
