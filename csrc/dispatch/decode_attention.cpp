#include "launch.h"
#include "no_gradient.h"
#include "ops.h"
#include "sequences.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/scaled_dot_product_attention.h>

#include <cmath>

namespace bittorch {

using at::Tensor;

static void check_shapes(const Tensor &q, const Tensor &kv) {
    check_cache(kv, q, "q");
    TORCH_CHECK_VALUE(q.size(1) >= 1 && q.size(1) % kv.size(2) == 0,
                      "the heads of q must be a multiple of those of kv, got ", q.size(1), " and ", kv.size(2));
    check_no_gradient("decode_attention", {&q, &kv});
}

// Torch's attention, a sequence at a time: keys are cut to what some token sees, and a mask does the rest.
static Tensor by_torch(const Tensor &q, const Tensor &kv, const Sequences &sequences, int64_t window, double scale) {
    std::vector<Tensor> parts;
    const int64_t group = q.size(1) / kv.size(2);
    for (const bt_attention_sequence &s : sequences) {
        if (s.count == 0)
            continue;
        const int64_t first = s.length - s.count, begin = bt_attention_begin(window, first);
        const Tensor slots = kv.select(1, s.row).narrow(2, begin, s.length - begin).to(q.scalar_type());
        const Tensor queries = q.narrow(0, s.token, s.count).unflatten(1, {kv.size(2), group}).permute({1, 2, 0, 3});
        std::optional<Tensor> mask;
        if (s.count > 1) {
            const auto options = at::TensorOptions().dtype(at::kLong).device(q.device());
            const Tensor slot = at::arange(begin, s.length, options), at = at::arange(first, s.length, options);
            mask = slot.unsqueeze(0).le(at.unsqueeze(1));
            if (window > 0)
                mask = mask->logical_and(slot.unsqueeze(0).ge((at - window).unsqueeze(1)));
        }
        const Tensor k = slots.select(0, 0).unsqueeze(1).expand({-1, group, -1, -1});
        const Tensor v = slots.select(0, 1).unsqueeze(1).expand({-1, group, -1, -1});
        parts.push_back(at::scaled_dot_product_attention(queries, k, v, mask, 0.0, false, scale)
                            .permute({2, 0, 1, 3})
                            .flatten(1, 2));
    }
    return parts.empty() ? at::empty_like(q) : at::cat(parts);
}

static void run_on_cpu(bt_decode_attention p, const Tensor &q, Sequences &sequences) {
    int64_t parts = 0, seen = 0;
    for (const bt_attention_sequence &s : sequences)
        seen = size_sum("slots", {seen, size_product("slots", {s.count, s.length})});
    p.sequences = sequences.data();
    const int64_t tiles = bt_attention_place(&p, sequences.data(), &parts);
    const int64_t floats = size_product("parts", {parts, bt_attention_part_size(&p)});
    Scratch scratch(Scratch::bytes_of<float>(floats));
    p.parts = scratch.take<float>(floats);
    launch(find_kernel(BT_OP_decode_attention, BT_CPU, p.type, "auto"), p, tiles, work_of({seen, p.heads, p.dim}));
    parallel_tiles(q.size(0) * p.heads, work_of({parts, p.dim}),
                   [&](int64_t begin, int64_t end) { bt_decode_attention_combine(&p, begin, end); });
}

Tensor decode_attention(const Tensor &q, const Tensor &kv, at::IntArrayRef lengths, at::OptionalIntArrayRef rows,
                        at::OptionalIntArrayRef counts, int64_t window, std::optional<double> scale) {
    bt_decode_attention p{};
    p.type = float_type(q, "q"), p.kv_type = float_type(kv, "kv");
    check_shapes(q, kv);
    check_same_device({{"q", &q}, {"kv", &kv}});
    TORCH_CHECK_VALUE(window >= 0, "window must not be negative, got ", window);
    const double factor = scale.value_or(1.0 / std::sqrt(static_cast<double>(q.size(2))));
    TORCH_CHECK_VALUE(std::isfinite(static_cast<float>(factor * M_LOG2E)), "scale must be finite, got ", factor);
    Sequences sequences = checked_sequences(kv, q.size(0), lengths, rows, counts, BT_ATTENTION_MAX_TOKENS);
    const c10::DeviceGuard guard(q.device());
    if (device_kind(q, "q") == BT_GPU)
        return by_torch(q, kv, sequences, window, factor);
    Tensor y = empty(q.sizes(), q.options().memory_format(at::MemoryFormat::Contiguous));
    if (y.numel() == 0)
        return y;
    const bool dense = q.stride(2) == 1 && q.stride(1) == q.size(2);
    const Tensor tokens = dense ? q : q.contiguous();
    const Tensor cache = kv.stride(4) == 1 || kv.size(4) == 1 ? kv : kv.contiguous();
    p.q = tokens.const_data_ptr(), p.y = y.mutable_data_ptr(), p.k = cache.const_data_ptr();
    p.v = static_cast<const char *>(p.k) + cache.stride(0) * cache.element_size();
    p.count = static_cast<int64_t>(sequences.size()), p.heads = q.size(1), p.kv_heads = kv.size(2), p.dim = q.size(2);
    p.window = window, p.factor = static_cast<float>(factor * M_LOG2E);
    p.ldq = tokens.stride(0), p.ldy = p.heads * p.dim;
    p.ldrow = cache.stride(1), p.ldhead = cache.stride(2), p.ldslot = cache.stride(3);
    run_on_cpu(p, q, sequences);
    return y;
}

} // namespace bittorch
