#include "decoded_rows.h"
#include "launch.h"
#include "ops.h"

namespace bittorch {

// How a layout cuts rows of data: `weights` in `bytes`, which begin with runs of `run` bytes, four parts each; or,
// where `run` is 0, rows of bytes that hold four rows of weights, side by side or a quarter of all rows apart.
struct FieldsLayout {
    const char *name;
    int64_t weights, bytes, run;
    bool high_first, quarters;
};

static const FieldsLayout layouts[] = {{"i2_s_128x32", 128, 32, 32, true, false},
                                       {"i2_s_64x16", 64, 16, 16, true, false},
                                       {"i2_s_rows4", 1, 1, 0, true, false},
                                       {"bitnet", 1, 1, 0, false, true},
                                       {"tq2_0", 256, 66, 32, false, false}};

at::Tensor ternary_from_fields(const at::Tensor &data, int64_t in_features, const std::string &layout_name,
                               at::Tensor w_packed) {
    const FieldsLayout &layout = layout_of(layouts, layout_name);
    check_data(data, "rows", in_features, layout, true);
    const int64_t all = size_product("rows", {data.size(0), layout.run ? 1 : 4});
    check_written(w_packed, "w_packed", data, all, in_features);
    const bt_kernel &kernel = find_kernel(BT_OP_ternary_from_fields, device_kind(data, "data"), BT_I8, "auto");
    const at::Tensor rows = as_rows(data, "data");
    const int64_t n = rows.size(0), stride = w_packed.stride(0);
    at::Tensor reserved = empty({n}, data.options().dtype(at::kBool));
    if (w_packed.numel() == 0)
        return reserved.zero_();

    bt_ternary_from_fields p{};
    p.data = rows.const_data_ptr<uint8_t>();
    p.w = w_packed.mutable_data_ptr<uint8_t>();
    p.reserved = static_cast<uint8_t *>(reserved.mutable_data_ptr());
    p.n = n, p.ldd = rows.stride(0), p.high_first = layout.high_first;
    if (layout.run) {
        p.blocks = in_features / layout.weights, p.runs = layout.bytes / layout.run, p.run = layout.run;
        p.ldblock = layout.bytes, p.ldw = stride, p.ldpart = layout.run / 4;
    } else {
        p.blocks = 1, p.runs = 1, p.run = in_features;
        p.ldw = layout.quarters ? stride : 4 * stride, p.ldpart = layout.quarters ? n * stride : stride;
    }
    launch(kernel, p, n, work_of({n, rows.size(1), 4}));
    return reserved;
}

} // namespace bittorch
