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

static const FieldsLayout &layout_of(const std::string &name) {
    static const FieldsLayout layouts[] = {{"i2_s_128x32", 128, 32, 32, true, false},
                                           {"i2_s_64x16", 64, 16, 16, true, false},
                                           {"i2_s_rows4", 1, 1, 0, true, false},
                                           {"bitnet", 1, 1, 0, false, true},
                                           {"tq2_0", 256, 66, 32, false, false}};
    for (const FieldsLayout &layout : layouts)
        if (name == layout.name)
            return layout;
    TORCH_CHECK_VALUE(false, "layout must be 'i2_s_128x32', 'i2_s_64x16', 'i2_s_rows4', 'bitnet' or 'tq2_0', got '",
                      name, "'");
}

// The sizes of both sides, and that w_packed can be written to.
static void check_sizes(const at::Tensor &data, int64_t k, const FieldsLayout &layout, const at::Tensor &w_packed) {
    TORCH_CHECK_TYPE(data.scalar_type() == at::kByte, "data must be uint8, got ", dtype_name(data));
    TORCH_CHECK_VALUE(k >= 0, "in_features must not be negative, got ", k);
    TORCH_CHECK_VALUE(k % layout.weights == 0, "in_features must be a multiple of ", layout.weights, " for layout='",
                      layout.name, "', got ", k);
    const int64_t bytes = size_product("bytes of a row", {k / layout.weights, layout.bytes});
    TORCH_CHECK_VALUE(data.dim() == 2 && data.size(1) == bytes, "data must be (rows, ", bytes,
                      ") uint8 for in_features=", k, " and layout='", layout.name, "', got ", data.sizes());
    const int64_t n = size_product("rows", {data.size(0), layout.run ? 1 : 4});
    check_on_cpu(data, "data");
    check_written(w_packed, "w_packed", data, n, k);
}

at::Tensor ternary_from_fields(const at::Tensor &data, int64_t in_features, const std::string &layout_name,
                               at::Tensor w_packed) {
    const FieldsLayout &layout = layout_of(layout_name);
    check_sizes(data, in_features, layout, w_packed);
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
