// What the ops of quantised blocks check alike.
#pragma once

#include "checks.h"

#include <string>

namespace bittorch {

// BT_BLOCK_* by its name; raises with the names that there are.
int block_number(const std::string &kind);

// (rows, bytes) uint8, rows of `columns` weights in whole blocks.
void check_blocks(const at::Tensor &blocks, const std::string &kind, int block, int64_t columns);

} // namespace bittorch
