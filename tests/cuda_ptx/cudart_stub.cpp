#include "stub.h"

#include <algorithm>
#include <utility>

using ptx::Kernel;

void check(bool ok, const char *format, ...); /* of test.h, whose cusim.h declares the runtime otherwise */

namespace {
struct dim3 {
    unsigned x, y, z;
};
enum { SUCCESS = 0, INVALID_VALUE = 1, INVALID_CONFIGURATION = 9, INVALID_FUNCTION = 98 };
} // namespace

namespace stub {

bool execute = true;
size_t shared_limit = 99 * 1024;
std::vector<Recording> recordings;
std::map<std::string, ptx::Launch> tallest;

/* The kernels of the host's functions, which register before main(). */
static std::map<const void *, std::string> &names() {
    static std::map<const void *, std::string> all;
    return all;
}

static std::map<const void *, size_t> allowed; /* dynamic shared memory beyond 48 KiB */
static int last_error;
static struct {
    dim3 grid, block;
    size_t shared;
    void *stream;
} configuration;

static bool is_allowed(const Kernel &kernel, const void *function, dim3 grid, dim3 block, size_t shared) {
    const uint64_t threads = (uint64_t)block.x * block.y * block.z;
    const size_t asked = allowed.count(function) ? allowed[function] : 0;
    const size_t limit = std::max((size_t)48 * 1024, asked + kernel.shared_bytes);
    return grid.x && grid.y && grid.z && grid.x <= 0x7fffffff && grid.y <= 65535 && grid.z <= 65535 && threads &&
           threads <= 1024 && block.z <= 64 && (!kernel.max_threads || threads <= kernel.max_threads) &&
           shared + kernel.shared_bytes <= limit && (shared == 0 || kernel.dynamic_at);
}

/* Keeps a launch for mutations.cpp when it executes what no kept one does. */
static void record(Kernel &kernel, const ptx::Launch &launch, uint64_t cost) {
    std::vector<bool> now(kernel.code.size()), before(kernel.code.size());
    for (size_t i = 0; i < kernel.code.size(); i++)
        now[i] = kernel.code[i].last_launch == ptx::launch_number;
    for (const Recording &other : recordings)
        for (size_t i = 0; other.kernel == &kernel && i < before.size(); i++)
            before[i] = before[i] || other.executed[i];
    bool is_new = false;
    for (size_t i = 0; i < now.size(); i++)
        is_new = is_new || (now[i] && !before[i]);
    if (!is_new)
        return;
    Recording recording = {&kernel, launch, std::move(ptx::recorded), {}, now, cost};
    for (const auto &region : recording.before) {
        recording.after.push_back(ptx::buffers.at(region.base));
        recording.after.back().own.assign(region.bytes, region.bytes + region.size);
    }
    recordings.push_back(std::move(recording));
}

static int launch(const void *function, dim3 grid, dim3 block, void **arguments, size_t shared) {
    const auto name = names().find(function);
    if (name == names().end())
        return last_error = INVALID_FUNCTION;
    Kernel &kernel = ptx::kernels.at(name->second);
    if (!is_allowed(kernel, function, grid, block, shared))
        return last_error = INVALID_CONFIGURATION;
    const unsigned blocks[] = {grid.x, grid.y, grid.z}, threads[] = {block.x, block.y, block.z};
    const auto now = ptx::make_launch(kernel, blocks, threads, shared, arguments);
    const auto most = tallest.emplace(name->second, now).first;
    if ((uint64_t)most->second.grid[0] * most->second.grid[1] < (uint64_t)grid.x * grid.y)
        most->second = now;
    if (!execute)
        return SUCCESS;
    const uint64_t before = ptx::executed;
    ptx::run(kernel, now);
    if (ptx::recording)
        record(kernel, now, ptx::executed - before);
    if (const std::string faults = ptx::take_faults(); !faults.empty())
        check(false, "faults:\n%s", faults.c_str());
    return SUCCESS;
}

} // namespace stub

using namespace stub;

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
    names()[function] = name;
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
    return launch(function, grid, block, arguments, shared);
}
int cudaLaunchKernel(const void *function, dim3 grid, dim3 block, void **arguments, size_t shared, void *) {
    return launch(function, grid, block, arguments, shared); /* what nvcc 12 calls */
}

int cudaFuncSetAttribute(const void *function, int attribute, int bytes) {
    const auto name = names().find(function);
    if (name == names().end())
        return last_error = INVALID_FUNCTION;
    const size_t fixed = ptx::kernels.at(name->second).shared_bytes;
    if (attribute != 8 || bytes < 0 || (size_t)bytes + fixed > shared_limit) /* 8: dynamic shared memory */
        return last_error = INVALID_VALUE;
    allowed[function] = (size_t)bytes;
    return SUCCESS;
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
