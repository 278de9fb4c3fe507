#include "launch.h"
#include "no_gradient.h"
#include "ops.h"
#include "sequences.h"

#include <ATen/MemoryOverlap.h>

#include <algorithm>
#include <vector>

namespace bittorch {

using at::Tensor;

// (tokens, rotated) of the type of heads, columns side by side.
static Tensor checked_angles(const std::optional<Tensor> &angles, const char *name, const Tensor &heads) {
    if (!angles)
        return {};
    TORCH_CHECK_TYPE(angles->scalar_type() == heads.scalar_type(), name, " must be of the type of heads, ",
                     dtype_name(heads), ", got ", dtype_name(*angles));
    check_same_device({{"heads", &heads}, {name, &*angles}});
    TORCH_CHECK_VALUE(angles->dim() == 2 && angles->size(0) == heads.size(0) && angles->size(1) % 2 == 0 &&
                          angles->size(1) <= heads.size(2),
                      name, " must be (", heads.size(0), ", an even number up to ", heads.size(2), "), got ",
                      angles->sizes());
    return angles->contiguous();
}

static void check_heads(const Tensor &heads, const Tensor &kv) {
    check_cache(kv, heads, "heads");
    check_same_device({{"heads", &heads}, {"kv", &kv}});
    TORCH_CHECK_VALUE(heads.size(1) > 2 * kv.size(2), "heads must have those of q before the ", kv.size(2),
                      " of k and of v, got ", heads.size(1));
    TORCH_CHECK_VALUE(heads.stride(2) == 1 && heads.stride(1) == heads.size(2) &&
                          heads.stride(0) >= heads.size(1) * heads.size(2),
                      "the heads of a token must lie side by side, got strides ", heads.strides());
    TORCH_CHECK_VALUE(kv.stride(4) == 1, "the columns of kv must lie side by side, got strides ", kv.strides());
}

void rotary_store(Tensor heads, Tensor kv, const std::optional<Tensor> &cos, const std::optional<Tensor> &sin,
                  at::IntArrayRef lengths, at::OptionalIntArrayRef rows, at::OptionalIntArrayRef counts) {
    bt_rotary_store p{};
    p.type = float_type(heads, "heads"), p.kv_type = float_type(kv, "kv");
    check_heads(heads, kv);
    check_no_gradient("rotary_store", {&heads, &kv, or_null(cos), or_null(sin)});
    at::assert_no_internal_overlap(kv);
    at::assert_no_overlap(heads, kv);
    if (rows) {
        std::vector<int64_t> sorted(rows->begin(), rows->end());
        std::sort(sorted.begin(), sorted.end());
        TORCH_CHECK_VALUE(std::adjacent_find(sorted.begin(), sorted.end()) == sorted.end(),
                          "rows must name a row of kv once, got ", *rows);
    }
    const Tensor cosines = checked_angles(cos, "cos", heads), sines = checked_angles(sin, "sin", heads);
    TORCH_CHECK_VALUE(cos.has_value() == sin.has_value() && (!cos || cos->sizes() == sin->sizes()),
                      "cos and sin must have one shape, or be None both");
    const Sequences sequences = checked_sequences(kv, heads.size(0), lengths, rows, counts);
    const bt_kernel &kernel = find_kernel(BT_OP_rotary_store, device_kind(heads, "heads"), p.type, "auto");
    if (heads.numel() == 0)
        return;
    p.heads = heads.mutable_data_ptr(), p.k = kv.mutable_data_ptr();
    p.v = static_cast<char *>(p.k) + kv.stride(0) * kv.element_size();
    if (cos)
        p.cos = cosines.const_data_ptr(), p.sin = sines.const_data_ptr(), p.rotated = cosines.size(1);
    p.sequences = sequences.data();
    p.kv_heads = kv.size(2), p.heads_q = heads.size(1) - 2 * p.kv_heads, p.dim = heads.size(2);
    p.ldx = heads.stride(0), p.ldcos = p.rotated;
    p.ldrow = kv.stride(1), p.ldhead = kv.stride(2), p.ldslot = kv.stride(3);
    for (const Tensor *written : {&heads, &kv})
        if (!written->is_inference())
            written->unsafeGetTensorImpl()->bump_version();
    launch(kernel, p, heads.size(0), work_of({heads.size(0), heads.size(1), p.dim}));
}

} // namespace bittorch
