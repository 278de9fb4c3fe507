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

static const Base3Layout layouts[] = {
    {"rows", BT_BASE3_ROWS, 5, 1}, {"tq1_0", BT_BASE3_TQ1, 256, 54}, {"ptq1_0", BT_BASE3_PTQ1, 128, 28}};

// Checks both, and returns the layout.
static const Base3Layout &checked_layout(const at::Tensor &data, int64_t in_features, const std::string &layout_name) {
    const Base3Layout &layout = layout_of(layouts, layout_name);
    check_data(data, "out_features", in_features, layout, layout.number != BT_BASE3_ROWS);
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
