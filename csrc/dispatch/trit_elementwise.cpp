#include "launch.h"
#include "ops.h"
#include "trits.h"

namespace bittorch {

namespace {

struct TritFunction {
    const char *name;
    int operands;
};

#define BT_TRIT_FUNCTION(name, operands, codes) {#name, operands},
constexpr TritFunction functions[] = {BT_TRIT_FUNCTIONS(BT_TRIT_FUNCTION)};
#undef BT_TRIT_FUNCTION

} // namespace

at::Tensor trit_elementwise(const at::Tensor &a, const std::optional<at::Tensor> &b, const std::string &function,
                            int64_t columns) {
    bt_trit_elementwise p{};
    p.function = number_of(function, BT_TRIT_COUNT, [](int i) { return functions[i].name; }, "function");
    const TritFunction &f = functions[p.function];
    TORCH_CHECK_VALUE(b.has_value() == (f.operands == 2), "function '", function, "' is of ", f.operands,
                      f.operands == 2 ? " arrays; b is missing" : " array; b must be None");
    const at::Tensor left = trit_rows(a, columns, "a"), right = b ? trit_rows(*b, columns, "b") : at::Tensor();
    check_same_device({{"a", &a}, {"b", or_null(b)}});
    const bt_kernel &kernel = find_kernel(BT_OP_trit_elementwise, device_kind(a, "a"), BT_I8, "auto");
    const c10::DeviceGuard guard(a.device());
    p.n = common_rows(left, right), p.k = columns;
    at::Tensor y = empty({p.n, div_up(columns, 4)}, a.options());
    if (y.numel() == 0)
        return y;
    p.a = left.const_data_ptr<uint8_t>();
    p.b = b ? right.const_data_ptr<uint8_t>() : nullptr;
    p.y = y.mutable_data_ptr<uint8_t>();
    p.lda = row_step(left, p.n), p.ldb = b ? row_step(right, p.n) : 0, p.ldy = y.stride(0);
    launch(kernel, p, size_product("tiles", {p.n, bt_trit_chunks(p.k)}), work_of({p.n, div_up(columns, 16)}));
    return y;
}

} // namespace bittorch
