// Splits a CPU kernel's tiles over torch's threads.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>

namespace bittorch {

// run(begin, end) over [0, tiles). Problems of less work than a fork and join is worth stay on the calling thread.
// at::parallel_for hands each thread one share; taking pieces from a counter instead lets a thread whose core is busy
// do less.
template <typename Run> void parallel_tiles(int64_t tiles, int64_t work, const Run &run) {
    constexpr int64_t serial_work = 1 << 18;
    const int64_t threads = std::min<int64_t>(at::get_num_threads(), tiles);
    if (threads <= 1 || work < serial_work || at::in_parallel_region()) {
        run(int64_t{0}, tiles);
        return;
    }
    const int64_t piece = std::max<int64_t>(1, tiles / (8 * threads));
    std::atomic<int64_t> next{0};
    at::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
        for (int64_t begin; (begin = next.fetch_add(piece)) < tiles;)
            run(begin, std::min(begin + piece, tiles));
    });
}

} // namespace bittorch
