/* Runs the blocks of a launch. */
#include "ptx.h"

#include <bit>
#include <cstring>
#include <tuple>
#include <utility>

namespace ptx {

uint64_t executed, budget = ~0ull;
bool reverse_warps, stop_at_fault;

static std::map<std::string, std::pair<uint64_t, std::string>> faults; /* how often, and where first */

void fault(const Kernel &kernel, const Instruction *at, const std::string &what, const std::string &where) {
    if (stop_at_fault)
        throw Stopped();
    const std::string key = kernel.file + ":" + std::to_string(at ? at->line : 0) + ": " + kernel.name + ": ";
    auto &entry = faults[key + (at ? at->opcode + ": " : "") + what];
    if (entry.first++ == 0)
        entry.second = where;
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
    memcpy(params.bytes, launch.params.data(), kernel.param_bytes);
    warps.resize((threads + WARP - 1) / WARP);
    local.resize(threads);
    for (size_t i = 0; i < warps.size(); i++) {
        warps[i].first = WARP * (unsigned)i;
        warps[i].all = threads - warps[i].first < WARP ? (1u << (threads - warps[i].first)) - 1 : ~0u;
        warps[i].registers.resize(WARP * (size_t)kernel.register_count);
        for (const auto &[slot, value] : kernel.constants)
            std::fill_n(warps[i].values(slot), (size_t)WARP, value);
    }
}

/* Nothing is defined, except constants and who a thread is. */
void Block::start() {
    times.block = times.barrier = ++times.now;
    const size_t dynamic = kernel.dynamic_at ? (size_t)(kernel.dynamic_at - SHARED_BASE) + launch.shared : 0;
    shared.resize(SHARED_BASE, dynamic ? dynamic : (size_t)(kernel.shared_end - SHARED_BASE), GAP);
    auto arrays = kernel.shared;
    if (kernel.dynamic_at)
        arrays.push_back({kernel.dynamic_at, launch.shared});
    for (const auto &array : arrays)
        for (size_t i = 0; i < array.bytes; i++)
            shared.shadow[array.at - SHARED_BASE + i].state = UNDEFINED;
    for (Region &own : local)
        own.resize(LOCAL_BASE, kernel.local_bytes, UNDEFINED);
    copies.assign(threads, {});
    groups.assign(threads, 0);
    for (Warp &warp : warps) {
        warp.mask = warp.all;
        warp.pc = 0;
        warp.ready.clear(), warp.waiting.clear();
        warp.since = times.now;
        warp.undefined.assign((size_t)kernel.register_count, ~0u);
        for (const auto &constant : kernel.constants)
            warp.undefined[constant.first] = 0;
        std::fill_n(warp.undefined.begin(), SPECIAL, 0);
        for (unsigned lane = 0; lane < WARP; lane++) {
            const unsigned thread = warp.first + lane, *const block = launch.block;
            const unsigned place[3] = {thread % block[0], thread / block[0] % block[1], thread / block[0] / block[1]};
            for (int axis = 0; axis < 3; axis++) {
                const unsigned values[] = {place[axis], block[axis], id[axis], launch.grid[axis]};
                for (int i = 0; i < 4; i++)
                    warp.values(3 * i + axis)[lane] = values[i];
            }
        }
    }
}

/* What is done register by register. A choice is undefined where the chosen one is. */
void Block::compute(Warp &warp, Instruction &at, uint32_t mask) {
    const Word *in[8];
    uint32_t undefined = 0;
    const int width = 8 * at.bytes;
    for (size_t i = 0; i < at.in.size(); i++) {
        in[i] = warp.values(at.in[i]);
        undefined |= warp.undefined[at.in[i]];
    }
    if (at.kind == COMPUTE)
        at.compute(in, warp.values(at.out[0]), mask);
    for (int lane = 0; lane < WARP && at.is_order && !(at.ways & MET); lane++)
        if (mask >> lane & 1 && (in[0][lane] ^ in[1][lane]) << (64 - width) == 0)
            at.ways |= MET;
    for (int lane = 0; lane < WARP && at.kind != COMPUTE; lane++) {
        Word value = 0;
        if (!(mask >> lane & 1))
            continue;
        if (at.kind == SELECT) {
            const size_t chosen = in[2][lane] & 1 ? 0 : 1;
            value = in[chosen][lane];
            undefined &= ~(1u << lane);
            undefined |= (warp.undefined[at.in[2]] | warp.undefined[at.in[chosen]]) & 1u << lane;
        }
        for (size_t i = 0; at.kind == PACK && i < at.in.size(); i++)
            value |= (in[i][lane] & (~0ull >> (64 - width))) << (width * (int)i);
        if (at.kind == UNPACK)
            value = in[0][lane];
        for (size_t i = 0; i < at.out.size(); i++)
            warp.values(at.out[i])[lane] = value >> (width * (int)i);
    }
    for (const int slot : at.out)
        warp.define(slot, mask, undefined);
    if (take_division_by_zero())
        report(&at, "division by zero", warp.first);
}

void Block::execute(Warp &warp, Instruction &at, uint32_t mask) {
    if (at.kind <= UNPACK)
        return compute(warp, at, mask);
    if (at.kind == MMA)
        return multiply(warp, at);
    if (at.kind == WARP_BARRIER)
        times.warp = warp.since = ++times.now;
    for (unsigned lane = 0; lane < WARP && at.kind <= WAIT; lane++)
        if (!(mask >> lane & 1))
            continue;
        else if (at.kind == LOAD)
            load(warp, at, lane);
        else if (at.kind == STORE)
            store(warp, at, lane);
        else if (at.kind == COPY)
            copy(warp, at, lane);
        else if (at.kind == COMMIT)
            groups[warp.first + lane]++;
        else
            deliver(at, warp.first + lane);
}

/* The lanes whose guard is true. */
uint32_t Block::guarded(Warp &warp, const Instruction &at, uint32_t mask) {
    if (at.guard < 0)
        return mask;
    if (const uint32_t undefined = warp.undefined[at.guard] & mask)
        report(&at, "a predicate depends on undefined data", warp.first + (unsigned)std::countr_zero(undefined));
    for (int lane = 0; lane < WARP; lane++)
        mask &= ~((uint32_t)((warp.values(at.guard)[lane] & 1) == at.guard_not) << lane);
    return mask;
}

/* The lanes that go next: those furthest behind, so that paths meet again, or when all others wait, those that need the
 * whole warp. */
bool Block::choose(Warp &warp) {
    if (warp.mask && (warp.ready.empty() || warp.ready.begin()->first > warp.pc))
        return true;
    if (warp.mask)
        warp.ready[warp.pc] |= warp.mask;
    auto &from = warp.ready.empty() ? warp.waiting : warp.ready;
    if (from.empty())
        return false;
    warp.together = &from == &warp.waiting;
    std::tie(warp.pc, warp.mask) = *from.begin();
    from.erase(from.begin());
    return true;
}

/* Until a barrier of the block or the end. */
void Block::advance(Warp &warp) {
    times.warp = warp.since;
    for (warp.barrier = nullptr; choose(warp);) {
        if (warp.pc >= (int)kernel.code.size())
            stop(kernel, 0, "the code ends without ret");
        Instruction &at = kernel.code[(size_t)warp.pc];
        const bool whole = at.kind >= MMA, together = std::exchange(warp.together, false);
        if (whole && warp.mask != warp.all && !together) {
            warp.waiting[warp.pc] |= std::exchange(warp.mask, 0);
            continue;
        }
        if (whole && warp.mask != warp.all)
            report(&at, "only a part of the warp is here", warp.first + (unsigned)std::countr_zero(warp.mask));
        const uint32_t mask = guarded(warp, at, warp.mask);
        at.ways = at.last_launch == launch_number ? at.ways : (uint8_t)0;
        at.last_launch = launch_number;
        at.ways |= at.kind == BRANCH ? (mask ? JUMPED : 0) | (mask != warp.mask ? ON : 0) : (int)ON;
        if (++executed > budget)
            throw Stopped();
        warp.pc++;
        if (at.kind == BARRIER) {
            warp.barrier = &at;
            return;
        }
        if (at.kind == BRANCH && mask) {
            if (mask != warp.mask && at.uniform)
                report(&at, "bra.uni by a part of the warp", warp.first + (unsigned)std::countr_zero(mask));
            if (mask != warp.mask)
                warp.ready[warp.pc] |= warp.mask & ~mask;
            warp.pc = at.number, warp.mask = mask;
        } else if (at.kind == RETURN)
            warp.mask &= ~mask;
        else if (mask && at.kind != BRANCH && at.kind != NOTHING)
            execute(warp, at, mask);
    }
}

/* Every warp waits at a barrier, or has ended: the same holds for all. */
void Block::wait_for_all() {
    const Instruction *barrier = nullptr;
    for (const Warp &warp : warps)
        barrier = warp.barrier ? warp.barrier : barrier;
    for (const Warp &warp : warps)
        if (warp.barrier != barrier)
            report(barrier, warp.barrier ? "warps wait at different barriers" : "a barrier that a warp never reaches",
                   warp.first);
    times.barrier = ++times.now;
}

void Block::run() {
    start();
    for (bool running = true; running;) {
        running = false;
        for (size_t i = 0; i < warps.size(); i++) {
            Warp &warp = warps[reverse_warps ? warps.size() - 1 - i : i];
            advance(warp);
            running = running || warp.barrier;
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
    times.launch = ++times.now;
    recorded.clear();
    Block block(kernel, launch);
    for (block.id[2] = 0; block.id[2] < launch.grid[2]; block.id[2]++)
        for (block.id[1] = 0; block.id[1] < launch.grid[1]; block.id[1]++)
            for (block.id[0] = 0; block.id[0] < launch.grid[0]; block.id[0]++)
                block.run();
}

} // namespace ptx
