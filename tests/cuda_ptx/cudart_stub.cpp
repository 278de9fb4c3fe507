#include "stub.h"

#include <algorithm>
#include <utility>

namespace {
struct dim3 {
    unsigned x, y, z;
};
enum { SUCCESS = 0, INVALID_VALUE = 1, INVALID_CONFIGURATION = 9, INVALID_FUNCTION = 98 };
} // namespace

using ptx::Kernel;

namespace stub {

bool execute = true;
size_t shared_limit = 99 * 1024;
std::vector<Recording> recordings;

/* The kernels of the host's functions, which register before main(). */
static std::map<const void *, std::string> &names() {
    static std::map<const void *, std::string> all;
    return all;
}

static std::map<const void *, size_t> allowed; /* dynamic shared memory beyond 48 KiB */
static struct {
    dim3 grid, block;
    size_t shared;
    void *stream;
} configuration;

static bool is_allowed(const Kernel &kernel, const void *function, const unsigned *grid, const unsigned *block,
                       size_t shared) {
    const uint64_t threads = (uint64_t)block[0] * block[1] * block[2];
    const size_t asked = allowed.count(function) ? allowed[function] : 0;
    const size_t limit = std::max((size_t)48 * 1024, asked + kernel.shared_bytes);
    return grid[0] && grid[1] && grid[2] && grid[0] <= 0x7fffffff && grid[1] <= 65535 && grid[2] <= 65535 && threads &&
           threads <= 1024 && block[2] <= 64 && (!kernel.max_threads || threads <= kernel.max_threads) &&
           shared + kernel.shared_bytes <= limit && (shared == 0 || kernel.dynamic_at);
}

/* Keeps a launch for mutations.cpp when it goes where no kept one does, and some others, the later the fewer. */
static void record(Kernel &kernel, const ptx::Launch &launch, uint64_t cost) {
    static std::map<const Kernel *, std::vector<uint8_t>> kept;
    static std::map<const Kernel *, std::pair<int, int>> turns; /* launches so far, and the next that is kept */
    std::vector<uint8_t> &before = kept[&kernel], now(kernel.code.size());
    before.resize(now.size());
    auto &[turn, next] = turns[&kernel];
    bool is_new = turn++ == next;
    next += is_new ? 1 + next / 8 : 0;
    for (size_t i = 0; i < now.size(); i++) {
        now[i] = kernel.code[i].last_launch == ptx::launch_number ? kernel.code[i].ways : (uint8_t)0;
        is_new = is_new || (now[i] & ~before[i]);
    }
    if (!is_new)
        return;
    for (size_t i = 0; i < now.size(); i++)
        before[i] |= now[i];
    Recording recording = {&kernel, launch, std::move(ptx::recorded), {}, now, cost};
    for (const auto &region : recording.before) {
        recording.after.push_back(ptx::buffers.at(region.base));
        recording.after.back().own.assign(region.bytes, region.bytes + region.size);
    }
    recordings.push_back(std::move(recording));
}

int launch(const void *function, const unsigned *grid, const unsigned *block, void **arguments, size_t shared) {
    const auto name = names().find(function);
    if (name == names().end())
        return INVALID_FUNCTION;
    Kernel &kernel = ptx::kernels.at(name->second);
    if (!is_allowed(kernel, function, grid, block, shared))
        return INVALID_CONFIGURATION;
    const auto now = ptx::make_launch(kernel, grid, block, shared, arguments);
    if (!execute)
        return SUCCESS;
    const uint64_t before = ptx::executed;
    ptx::reverse_warps = is_reversed();
    ptx::run(kernel, now);
    if (ptx::recording)
        record(kernel, now, ptx::executed - before);
    if (const std::string faults = ptx::take_faults(); !faults.empty())
        check(false, "faults:\n%s", faults.c_str());
    return SUCCESS;
}

int allow_shared(const void *function, int bytes) {
    const auto name = names().find(function);
    if (name == names().end())
        return INVALID_FUNCTION;
    if (bytes < 0 || (size_t)bytes + ptx::kernels.at(name->second).shared_bytes > shared_limit)
        return INVALID_VALUE;
    allowed[function] = (size_t)bytes;
    return SUCCESS;
}

void add(const void *function, const char *name) {
    names()[function] = name;
}

} // namespace stub

using namespace stub;

static int last_error;

static int remember(int error) {
    last_error = error ? error : last_error;
    return error;
}

extern "C" {

void **__cudaRegisterFatBinary(void *) {
    static void *handle;
    return &handle;
}
void __cudaRegisterFatBinaryEnd(void **) {
}
void __cudaUnregisterFatBinary(void **) {
}
void __cudaRegisterFunction(void **, const char *function, char *, const char *name, int, void *, void *, void *,
                            void *, int *) {
    add(function, name);
}
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void *stream) {
    configuration = {grid, block, shared, stream};
    return 0;
}
int __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void **stream) {
    *grid = configuration.grid, *block = configuration.block;
    *shared = configuration.shared, *stream = configuration.stream;
    return 0;
}
int __cudaGetKernel(const void **kernel, const void *function) {
    *kernel = function;
    return 0;
}
int __cudaLaunchKernel(const void *function, dim3 grid, dim3 block, void **arguments, size_t shared, void *) {
    return remember(launch(function, &grid.x, &block.x, arguments, shared));
}
int cudaLaunchKernel(const void *function, dim3 grid, dim3 block, void **arguments, size_t shared, void *) {
    return remember(launch(function, &grid.x, &block.x, arguments, shared)); /* what nvcc 12 calls */
}
int cudaFuncSetAttribute(const void *function, int attribute, int bytes) {
    return remember(attribute == 8 ? allow_shared(function, bytes) : (int)INVALID_VALUE);
}
int cudaGetLastError() {
    return std::exchange(last_error, SUCCESS);
}
const char *cudaGetErrorString(int) {
    return "an error of tests/cuda_ptx";
}
int cudaGetDevice(int *device) {
    return *device = 0;
}
int cudaDeviceGetAttribute(int *value, int attribute, int) {
    *value = attribute == 75 ? 8 : 0; /* 75: the major number of its compute capability */
    return SUCCESS;
}

} // extern "C"
