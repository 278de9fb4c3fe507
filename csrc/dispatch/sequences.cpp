#include "sequences.h"

namespace bittorch {

void check_cache(const at::Tensor &kv, const at::Tensor &heads, const char *name) {
    TORCH_CHECK_VALUE(heads.dim() == 3, name, " must be (tokens, heads, head_dim), got ", heads.sizes());
    TORCH_CHECK_VALUE(kv.dim() == 5 && kv.size(0) == 2, "kv must be (2, rows, kv_heads, capacity, head_dim), got ",
                      kv.sizes());
    TORCH_CHECK_VALUE(kv.size(4) == heads.size(2) && heads.size(2) >= 1 && heads.size(2) <= BT_ATTENTION_MAX_DIM, name,
                      " and kv must have one head_dim from 1 to ", int{BT_ATTENTION_MAX_DIM}, ", got ", heads.size(2),
                      " and ", kv.size(4));
    TORCH_CHECK_VALUE(kv.size(2) >= 1, "kv must have a head at least, got ", kv.sizes());
}

Sequences checked_sequences(const at::Tensor &kv, int64_t tokens, at::IntArrayRef lengths, at::OptionalIntArrayRef rows,
                            at::OptionalIntArrayRef counts, int64_t most) {
    const size_t count = lengths.size();
    TORCH_CHECK_VALUE(!rows || rows->size() == count, "rows must name one for each of ", count, " lengths, got ",
                      rows ? rows->size() : 0);
    TORCH_CHECK_VALUE(!counts || counts->size() == count, "counts must have one for each of ", count, " lengths, got ",
                      counts ? counts->size() : 0);
    Sequences sequences(count);
    int64_t token = 0;
    for (size_t i = 0; i < count; i++) {
        bt_attention_sequence &s = sequences[i];
        s.row = rows ? (*rows)[i] : static_cast<int64_t>(i), s.count = counts ? (*counts)[i] : 1;
        s.length = lengths[i], s.token = token;
        TORCH_CHECK_VALUE(s.row >= 0 && s.row < kv.size(1), "kv has ", kv.size(1), " rows, got row ", s.row);
        TORCH_CHECK_VALUE(s.count >= 0 && s.count <= most, "a sequence can have up to ", most, " new tokens, got ",
                          s.count, "; for more of them use torch's scaled_dot_product_attention");
        TORCH_CHECK_VALUE(s.length >= s.count && s.length <= kv.size(3), "the length of row ", s.row,
                          " must be from its ", s.count, " new tokens to the capacity of ", kv.size(3), ", got ",
                          s.length);
        token = size_sum("tokens", {token, s.count});
    }
    TORCH_CHECK_VALUE(token == tokens, "there are ", tokens, " tokens, and counts add up to ", token);
    return sequences;
}

} // namespace bittorch
