#include "decoded_rows.h"
#include "launch.h"
#include "ops.h"

namespace bittorch {

// How a layout cuts rows: `weights` stand in `bytes`, and a row has whole blocks but for the layout "rows".
struct Base3Layout {
    const char *name;
    int number;
    int64_t weights, bytes;
};

static const Base3Layout &layout_of(const std::string &name) {
    static const Base3Layout layouts[] = {
        {"rows", BT_BASE3_ROWS, 5, 1}, {"tq1_0", BT_BASE3_TQ1, 256, 54}, {"ptq1_0", BT_BASE3_PTQ1, 128, 28}};
    for (const Base3Layout &layout : layouts)
        if (name == layout.name)
            return layout;
    TORCH_CHECK_VALUE(false, "layout must be 'rows', 'tq1_0' or 'ptq1_0', got '", name, "'");
}

// Checks both, and returns the layout.
static const Base3Layout &checked_layout(const at::Tensor &data, int64_t in_features, const std::string &layout_name) {
    const Base3Layout &layout = layout_of(layout_name);
    TORCH_CHECK_TYPE(data.scalar_type() == at::kByte, "data must be uint8, got ", dtype_name(data));
    TORCH_CHECK_VALUE(in_features >= 0, "in_features must not be negative, got ", in_features);
    TORCH_CHECK_VALUE(layout.number == BT_BASE3_ROWS || in_features % layout.weights == 0,
                      "in_features must be a multiple of ", layout.weights, " for layout='", layout_name, "', got ",
                      in_features);
    const int64_t k = in_features;
    const int64_t bytes = size_product("bytes of a row", {div_up(k, layout.weights), layout.bytes});
    TORCH_CHECK_VALUE(data.dim() == 2 && data.size(1) == bytes, "data must be (out_features, ", bytes,
                      ") uint8 for in_features=", k, " and layout='", layout_name, "', got ", data.sizes());
    check_on_cpu(data, "data");
    return layout;
}

static void decode(const at::Tensor &data, int64_t k, const Base3Layout &layout, const at::Tensor &packed) {
    const bt_kernel &kernel = find_kernel(BT_OP_ternary_from_base3, device_kind(data, "data"), BT_I8, "auto");
    const at::Tensor rows = as_rows(data, "data");
    if (packed.numel() == 0)
        return;
    bt_ternary_from_base3 p{};
    p.data = rows.const_data_ptr<uint8_t>();
    p.w = packed.mutable_data_ptr<uint8_t>();
    p.n = packed.size(0), p.k = k, p.ldd = rows.stride(0), p.ldw = packed.stride(0);
    p.layout = layout.number;
    launch(kernel, p, p.n, work_of({p.n, k}));
}

at::Tensor ternary_from_base3(const at::Tensor &data, int64_t in_features, const std::string &layout_name) {
    const Base3Layout &layout = checked_layout(data, in_features, layout_name);
    at::Tensor packed = empty({data.size(0), div_up(in_features, 4)}, data.options());
    decode(data, in_features, layout, packed);
    return packed;
}

void ternary_from_base3_out(const at::Tensor &data, int64_t in_features, const std::string &layout_name,
                            at::Tensor out) {
    const Base3Layout &layout = checked_layout(data, in_features, layout_name);
    check_written(out, "out", data, data.size(0), in_features);
    decode(data, in_features, layout, out);
}

} // namespace bittorch
