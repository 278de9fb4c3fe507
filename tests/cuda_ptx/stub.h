/* In place of the CUDA runtime: what nvcc's host code and the launchers call. A launch is checked as the runtime and
 * the driver would, and goes to the interpreter. */
#ifndef STUB_H
#define STUB_H

#include "ptx.h"

namespace stub {

struct Recording {
    ptx::Kernel *kernel;
    ptx::Launch launch;
    std::vector<ptx::Region> before, after; /* the buffers that it touched */
    std::vector<bool> executed;             /* its instructions, */
    uint64_t cost;                          /* and how many of them */
};

extern bool execute;                               /* else launches are only checked */
extern size_t shared_limit;                        /* bytes that a block of the device may have at most */
extern std::vector<Recording> recordings;          /* launches that execute what no earlier one of these does */
extern std::map<std::string, ptx::Launch> tallest; /* the largest launch of each kernel that was checked */

} // namespace stub

#endif
