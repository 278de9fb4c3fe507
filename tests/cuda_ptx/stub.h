/* In place of the CUDA runtime: what nvcc's host code and the launchers call. A launch is checked as the runtime and
 * the driver would, and goes to the interpreter. */
#ifndef STUB_H
#define STUB_H

#include "ptx.h"

void check(bool ok, const char *format, ...) __attribute__((format(printf, 2, 3))); /* of tests/cuda_host/test.h */

namespace stub {

struct Recording {
    ptx::Kernel *kernel;
    ptx::Launch launch;
    std::vector<ptx::Region> before, after; /* the buffers that it touched */
    std::vector<uint8_t> ways;              /* of its instructions, see ptx.h, */
    uint64_t cost;                          /* and how many of them a warp executed */
};

extern bool execute;                      /* else launches are only checked */
extern size_t shared_limit;               /* bytes that a block of the device may have at most */
extern std::vector<Recording> recordings; /* enough launches to go wherever the tests go */

bool is_reversed(); /* of main.cpp: whether the last warp of a block comes first */
/* cudaLaunchKernel, cudaFuncSetAttribute and __cudaRegisterFunction. */
int launch(const void *function, const unsigned *grid, const unsigned *block, void **arguments, size_t shared);
int allow_shared(const void *function, int bytes);
void add(const void *function, const char *name);

} // namespace stub

void test_faults();
void test_limits();
/* Changes `sample` places of each kind, drawn by `seed`. Where it goes on, what the folder has of an earlier run is not
 * tried again. */
void run_mutations(const std::string &folder, bool goes_on, size_t sample, uint64_t seed);

#endif
