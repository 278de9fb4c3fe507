/* Runs the blocks of a launch. */
#include "block.h"

#include <bit>
#include <cstring>

namespace ptx {

uint64_t executed, budget = ~0ull;
bool reverse_warps, stop_at_fault;

static std::map<std::string, std::pair<uint64_t, std::string>> faults; /* how often, and where first */
static size_t all_faults;

void fault(const Kernel &kernel, const Instruction *at, const std::string &what, const std::string &where) {
    std::string key = kernel.file + ":" + std::to_string(at ? at->line : 0) + ": " + kernel.name + ": ";
    auto &entry = faults[key + (at ? at->opcode + ": " : "") + what];
    if (entry.first++ == 0)
        entry.second = where;
    all_faults++;
    if (stop_at_fault)
        throw Stopped();
}

size_t fault_count() {
    return all_faults;
}

std::string take_faults() {
    std::string text;
    for (const auto &[what, entry] : faults)
        text += "  " + what + " (" + entry.second + "; " + std::to_string(entry.first) + " times)\n";
    faults.clear();
    return text;
}

Block::Block(Kernel &kernel_, const Launch &launch_) : kernel(kernel_), launch(launch_) {
    threads = launch.block[0] * launch.block[1] * launch.block[2];
    params.resize(PARAM_BASE, kernel.param_bytes, DEFINED);
    params.own = launch.params;
    params.bytes = params.own.data();
    warps.resize((threads + WARP - 1) / WARP);
    for (size_t i = 0; i < warps.size(); i++) {
        warps[i].first = WARP * (unsigned)i;
        warps[i].registers.resize(WARP * (size_t)kernel.register_count);
        for (const auto &[slot, value] : kernel.constants)
            std::fill_n(warps[i].values(slot), (size_t)WARP, value);
    }
}

/* Nothing is defined, except constants and who a thread is. */
void Block::start() {
    const size_t dynamic = kernel.dynamic_at ? (size_t)(kernel.dynamic_at - SHARED_BASE) + launch.shared : 0;
    shared.resize(SHARED_BASE, dynamic ? dynamic : (size_t)(kernel.shared_end - SHARED_BASE), GAP);
    for (const auto &array : kernel.shared)
        for (size_t i = 0; i < array.bytes; i++)
            shared.shadow[array.at - SHARED_BASE + i].state = UNDEFINED;
    for (size_t i = 0; kernel.dynamic_at && i < launch.shared; i++)
        shared.shadow[kernel.dynamic_at - SHARED_BASE + i].state = UNDEFINED;
    local.resize(LOCAL_BASE, threads * kernel.local_bytes, UNDEFINED);
    copies.assign(threads, {});
    groups.assign(threads, 0);
    block_epoch = ++epoch;
    for (Warp &warp : warps) {
        const unsigned left = threads - warp.first;
        warp.live = left < WARP ? (1u << left) - 1 : ~0u;
        warp.paths = {{0, -1, warp.live}};
        warp.barrier = nullptr;
        warp.undefined.assign((size_t)kernel.register_count, ~0u);
        for (int special = 0; special < 12; special++)
            warp.undefined[special] = 0;
        for (const auto &constant : kernel.constants)
            warp.undefined[constant.first] = 0;
        for (unsigned lane = 0; lane < WARP; lane++) {
            const unsigned thread = warp.first + lane, plane = launch.block[0] * launch.block[1];
            const unsigned place[3] = {thread % launch.block[0], thread / launch.block[0] % launch.block[1],
                                       thread / plane};
            for (int axis = 0; axis < 3; axis++) {
                warp.values(axis)[lane] = place[axis];
                warp.values(3 + axis)[lane] = launch.block[axis];
                warp.values(6 + axis)[lane] = id[axis];
                warp.values(9 + axis)[lane] = launch.grid[axis];
            }
        }
    }
}

/* What is done register by register. A choice is undefined where the chosen one is. */
void Block::compute(Warp &warp, const Instruction &at, uint32_t mask) {
    const Word *in[10];
    uint32_t undefined = 0;
    Word *const out = warp.values(at.out[0]);
    for (size_t i = 0; i < at.in.size(); i++) {
        in[i] = warp.values(at.in[i]);
        undefined |= warp.undefined[at.in[i]];
    }
    if (at.kind == COMPUTE)
        at.compute(in, out, mask);
    if (at.kind == SELECT) {
        uint32_t first = 0;
        for (int lane = 0; lane < WARP; lane++)
            first |= (uint32_t)(in[2][lane] & 1) << lane;
        undefined = warp.undefined[at.in[2]] | (warp.undefined[at.in[0]] & first) | (warp.undefined[at.in[1]] & ~first);
        for (int lane = 0; lane < WARP; lane++)
            if (mask >> lane & 1)
                out[lane] = in[first >> lane & 1 ? 0 : 1][lane];
    }
    const int width = 8 * at.bytes;
    for (int lane = 0; at.kind == PACK && lane < WARP; lane++) {
        Word packed = 0;
        for (size_t i = 0; i < at.in.size(); i++)
            packed |= (in[i][lane] & (~0ull >> (64 - width))) << (width * (int)i);
        if (mask >> lane & 1)
            out[lane] = packed;
    }
    for (int lane = 0; at.kind == UNPACK && lane < WARP; lane++) {
        const Word whole = in[0][lane];
        for (size_t i = 0; i < at.out.size() && (mask >> lane & 1); i++)
            warp.values(at.out[i])[lane] = whole >> (width * (int)i);
    }
    for (const int slot : at.out)
        warp.define(slot, mask, undefined);
    if (take_division_by_zero())
        report(&at, "division by zero", warp.first);
}

static void multiply_by(Warp &warp, const Instruction &at) {
    Fragments fragments;
    for (size_t i = 0; i < 10; i++) {
        fragments.in[i] = warp.values(at.in[i]);
        fragments.undefined_in[i] = warp.undefined[at.in[i]];
    }
    multiply(at, fragments);
    for (size_t i = 0; i < 4; i++) {
        memcpy(warp.values(at.out[i]), fragments.out[i], sizeof fragments.out[i]);
        warp.define(at.out[i], ~0u, fragments.undefined_out[i]);
    }
}

void Block::execute(Warp &warp, const Instruction &at, uint32_t mask) {
    if (at.kind == MMA) {
        if (mask != ~0u)
            report(&at, "only a part of the warp is here", warp.first + (unsigned)std::countr_zero(mask));
        return multiply_by(warp, at);
    }
    if (at.kind <= UNPACK)
        return compute(warp, at, mask);
    for (int lane = 0; lane < WARP; lane++) {
        const unsigned thread = warp.first + (unsigned)lane;
        if (!(mask >> lane & 1))
            continue;
        if (at.kind == LOAD)
            load(warp, at, lane);
        else if (at.kind == STORE)
            store(warp, at, lane);
        else if (at.kind == COPY)
            copy(warp, at, lane);
        else if (at.kind == COMMIT)
            groups[thread]++;
        else if (at.kind == WAIT)
            deliver(at, thread);
    }
}

/* The path goes on where its parts join again, after both of them. */
void Block::branch(Warp &warp, const Instruction &at, uint32_t taken) {
    Path &path = warp.paths.back();
    const uint32_t falls = path.mask & ~taken;
    const int next = path.pc + 1;
    if (!taken || !falls) {
        path.pc = taken ? at.target : next;
        return;
    }
    if (at.uniform)
        report(&at, "bra.uni by a part of the warp", warp.first + (unsigned)std::countr_zero(taken));
    path.pc = at.join;
    if (at.join != next)
        warp.paths.push_back({next, at.join, falls});
    if (at.join != at.target)
        warp.paths.push_back({at.target, at.join, taken});
}

/* Until a barrier or the end. */
void Block::advance(Warp &warp) {
    while (warp.live) {
        Path &path = warp.paths.back();
        if (!path.mask || (warp.paths.size() > 1 && path.pc == path.join)) {
            warp.paths.pop_back();
            continue;
        }
        if (path.pc >= (int)kernel.code.size())
            stop(kernel, 0, "the code ends without ret");
        Instruction &at = kernel.code[(size_t)path.pc];
        uint32_t mask = path.mask;
        if (at.guard >= 0) {
            if (const uint32_t undefined = warp.undefined[at.guard] & mask)
                report(&at, "a predicate depends on undefined data",
                       warp.first + (unsigned)std::countr_zero(undefined));
            for (int lane = 0; lane < WARP; lane++)
                mask &= ~((uint32_t)((warp.values(at.guard)[lane] & 1) == at.guard_not) << lane);
        }
        at.executed++;
        at.ways = at.last_launch == launch_number ? at.ways : 0;
        at.last_launch = launch_number;
        at.ways |= at.kind == BRANCH ? (mask ? JUMPED : 0) | (mask != path.mask ? ON : 0) : (int)ON;
        if (++executed > budget)
            throw Stopped();
        if (at.kind == BRANCH) {
            branch(warp, at, mask);
            continue;
        }
        path.pc++;
        if (at.kind == RETURN) {
            warp.live &= ~mask;
            for (Path &other : warp.paths)
                other.mask &= ~mask;
        } else if (at.kind == BARRIER) {
            if (mask != warp.live)
                report(&at, "a barrier that a part of the warp does not reach", warp.first);
            warp.barrier = &at;
            return;
        } else if (mask && at.kind != NOTHING)
            execute(warp, at, mask);
    }
}

/* Every warp waits at a barrier, or has ended: the same holds for all. */
void Block::wait_for_all() {
    const Instruction *barrier = nullptr;
    for (const Warp &warp : warps)
        barrier = warp.live ? warp.barrier : barrier;
    for (Warp &warp : warps) {
        if (barrier && warp.live && warp.barrier != barrier)
            report(barrier, "warps wait at different barriers", warp.first);
        if (barrier && !warp.live)
            report(barrier, "a barrier that a warp never reaches", warp.first);
        warp.barrier = nullptr;
    }
    epoch++;
}

void Block::run() {
    start();
    for (bool running = true; running;) {
        running = false;
        for (size_t i = 0; i < warps.size(); i++) {
            Warp &warp = warps[reverse_warps ? warps.size() - 1 - i : i];
            advance(warp);
            running = running || warp.live;
        }
        wait_for_all();
    }
    for (unsigned thread = 0; thread < threads; thread++)
        if (!copies[thread].empty())
            report(nullptr, "the kernel ends with copies that nobody waited for", thread);
}

Launch make_launch(const Kernel &kernel, const unsigned *grid, const unsigned *block, size_t shared, void **arguments) {
    Launch launch = {{grid[0], grid[1], grid[2]}, {block[0], block[1], block[2]}, shared, {}};
    launch.params.resize(kernel.param_bytes);
    for (size_t i = 0; i < kernel.parameters.size(); i++)
        memcpy(&launch.params[kernel.parameters[i].at], arguments[i], kernel.parameters[i].bytes);
    return launch;
}

void run(Kernel &kernel, const Launch &launch) {
    launch_number++;
    launch_epoch = ++epoch;
    recorded.clear();
    Block block(kernel, launch);
    for (block.id[2] = 0; block.id[2] < launch.grid[2]; block.id[2]++)
        for (block.id[1] = 0; block.id[1] < launch.grid[1]; block.id[1]++)
            for (block.id[0] = 0; block.id[0] < launch.grid[0]; block.id[0]++)
                block.run();
}

} // namespace ptx
