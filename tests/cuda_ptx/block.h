/* A block of threads: exec.cpp runs its warps, access.cpp checks what they touch. */
#ifndef BLOCK_H
#define BLOCK_H

#include "ptx.h"

namespace ptx {

struct Path {
    int pc, join; /* it ends where it joins the path below it */
    uint32_t mask;
};

struct Warp {
    unsigned first; /* its threads */
    uint32_t live = 0;
    const Instruction *barrier = nullptr; /* where it waits */
    std::vector<Path> paths;
    std::vector<Word> registers;
    std::vector<uint32_t> undefined; /* lanes of a register */

    Word *values(int slot) {
        return &registers[WARP * (size_t)slot];
    }
    void define(int slot, uint32_t mask, uint32_t undefined_lanes) {
        undefined[slot] = (undefined[slot] & ~mask) | (undefined_lanes & mask);
    }
};

struct Copy {
    Word to, from;
    int bytes;
    unsigned group;
};

struct Block {
    Kernel &kernel;
    const Launch &launch;
    unsigned id[3] = {0, 0, 0}, threads;
    Region params, shared, local;
    std::vector<Warp> warps;
    std::vector<std::vector<Copy>> copies; /* of each thread, under way */
    std::vector<unsigned> groups;          /* that it has committed */

    Block(Kernel &kernel_, const Launch &launch_);
    void start();
    void run();
    void advance(Warp &warp);
    void branch(Warp &warp, const Instruction &at, uint32_t taken);
    void execute(Warp &warp, const Instruction &at, uint32_t mask);
    void compute(Warp &warp, const Instruction &at, uint32_t mask);
    void load(Warp &warp, const Instruction &at, int lane);
    void store(Warp &warp, const Instruction &at, int lane);
    void copy(Warp &warp, const Instruction &at, int lane);
    void deliver(const Instruction &at, unsigned thread);
    void wait_for_all();
    uint8_t *find(const Instruction &at, unsigned thread, Space space, Word address, int bytes, Byte **shadow);
    Word address_of(Warp &warp, const Instruction &at, int lane);
    void report(const Instruction *at, const char *what, unsigned thread, Word address = 0) const;
};

} // namespace ptx

#endif
