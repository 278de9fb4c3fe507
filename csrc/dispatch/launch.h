// From a row of the kernel table to running code: the one cast of its function, and the one choice between a device,
// which gets the whole problem, and torch's threads, which share its tiles.
#pragma once

#include "checks.h"
#include "parallel.h"

namespace bittorch {

// The op whose kernels take these params.
template <typename Params> constexpr bt_op op_of = BT_OP_COUNT;
#define BT_OP_OF(op, list) template <> inline constexpr bt_op op_of<bt_##op> = BT_OP_##op;
BT_OPS(BT_OP_OF)
#undef BT_OP_OF

// Runs `kernel` on all tiles; `work` as in parallel_tiles(). CUDA: on the current stream of the current device, which
// the caller guards. CPU: with `memory`, each share of the tiles has `bytes` of scratch there.
template <typename Params>
void launch(const bt_kernel &kernel, const Params &params, int64_t tiles, int64_t work, void *Params::*memory = nullptr,
            int64_t bytes = 0) {
    TORCH_INTERNAL_ASSERT(kernel.op == op_of<Params>);
    const auto run = reinterpret_cast<bt_status (*)(const Params *, int64_t, int64_t)>(kernel.run);
    if (kernel.device == BT_GPU) {
        Params p = params;
        p.stream = current_stream();
        check_status(run(&p, 0, tiles), kernel);
    } else if (memory) {
        parallel_tiles(tiles, work, [&](int64_t begin, int64_t end) {
            Scratch scratch(Scratch::bytes_of<char>(bytes));
            Params p = params;
            p.*memory = scratch.take<char>(bytes);
            run(&p, begin, end);
        });
    } else {
        parallel_tiles(tiles, work, [&](int64_t begin, int64_t end) { run(&params, begin, end); });
    }
}

} // namespace bittorch
