// Sequences of new tokens on the rows of a cache, as the ops of attention take them.
#pragma once

#include "checks.h"

#include <limits>
#include <vector>

namespace bittorch {

using Sequences = std::vector<bt_attention_sequence>;

// kv (2, rows, kv_heads, capacity, head_dim) with head_dim up to what kernels take, and q or heads of it.
void check_cache(const at::Tensor &kv, const at::Tensor &heads, const char *name);

// One sequence a length, each with at most `most` new tokens, `tokens` in all.
Sequences checked_sequences(const at::Tensor &kv, int64_t tokens, at::IntArrayRef lengths, at::OptionalIntArrayRef rows,
                            at::OptionalIntArrayRef counts, int64_t most = std::numeric_limits<int64_t>::max());

} // namespace bittorch
