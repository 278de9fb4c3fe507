/* Runs the blocks of a launch. */
#include "ptx.h"

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

namespace {

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

} // namespace

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

void Block::report(const Instruction *at, const char *what, unsigned thread, Word address) const {
    char where[160];
    const auto after = buffers.upper_bound(address);
    snprintf(where, sizeof where, "block %u, %u, %u thread %u", id[0], id[1], id[2], thread);
    std::string text = where;
    if (address) {
        snprintf(where, sizeof where, ", address 0x%llx", (unsigned long long)address);
        text += where;
    }
    if (after != buffers.begin() && address >= buffers.begin()->first && address < SHARED_WINDOW >> 8) {
        const Region &before = std::prev(after)->second;
        snprintf(where, sizeof where, ", byte %llu of a buffer of %zu", (unsigned long long)(address - before.base),
                 before.size);
        text += where;
    }
    fault(kernel, at, what, text);
}

/* The bytes at an address and what is known of them, or null after a fault. */
uint8_t *Block::find(const Instruction &at, unsigned thread, Space space, Word address, int bytes, Byte **shadow) {
    const Word window = address & WINDOW_MASK;
    if (space == GENERIC) {
        space = window == SHARED_WINDOW ? SHARED : window == LOCAL_WINDOW ? LOCAL : GLOBAL;
        address -= space == GLOBAL ? 0 : window;
    }
    Region *const region = space == SHARED  ? &shared
                           : space == LOCAL ? &local
                           : space == PARAM ? &params
                                            : find_buffer(address);
    if (address % (Word)bytes) {
        report(&at, "misaligned address", thread, address);
        return nullptr;
    }
    Word place = region ? address - region->base : 0;
    const size_t size = !region ? 0 : space == LOCAL ? kernel.local_bytes : region->size;
    bool inside = region && place < size && (Word)bytes <= size - place;
    if (space == LOCAL)
        place += thread * kernel.local_bytes;
    for (int i = 0; inside && i < bytes; i++)
        inside = region->shadow[place + (Word)i].state != GAP;
    if (!inside) {
        report(&at, "out of bounds", thread, address);
        return nullptr;
    }
    *shadow = &region->shadow[place];
    return region->bytes + place;
}

Word Block::address_of(Warp &warp, const Instruction &at, int lane) {
    const Word address = warp.values(at.base)[lane] + (Word)at.offset;
    if (warp.undefined[at.base] >> lane & 1)
        report(&at, "an address depends on undefined data", warp.first + (unsigned)lane);
    return at.space == GLOBAL || at.space == GENERIC ? address : (uint32_t)address;
}

void Block::load(Warp &warp, const Instruction &at, int lane) {
    const unsigned thread = warp.first + (unsigned)lane;
    const Word address = address_of(warp, at, lane);
    Byte *shadow = nullptr;
    const uint8_t *const from = find(at, thread, at.space, address, at.bytes * (int)at.out.size(), &shadow);
    for (size_t k = 0; k < at.out.size(); k++) {
        Word value = 0;
        bool undefined = !from;
        for (int i = 0; from && i < at.bytes; i++) {
            Byte &byte = shadow[k * (size_t)at.bytes + (size_t)i];
            value |= (Word)from[k * (size_t)at.bytes + (size_t)i] << (8 * i);
            undefined |= byte.state != DEFINED;
            if (byte.state == PENDING)
                report(&at, "read of a copy before the wait for it", thread, address);
            if (at.uniform && byte.written >= launch_epoch)
                report(&at, "ld.global.nc of what this launch writes", thread, address);
            if (at.space == PARAM)
                continue;
            if (const char *const race = note_read(byte, thread))
                report(&at, race, thread, address);
        }
        const int unused = 64 - 8 * at.bytes;
        warp.values(at.out[k])[lane] = at.is_signed ? (Word)((int64_t)(value << unused) >> unused) : value;
        warp.define(at.out[k], 1u << lane, undefined ? ~0u : 0u);
    }
}

void Block::store(Warp &warp, const Instruction &at, int lane) {
    const unsigned thread = warp.first + (unsigned)lane;
    const Word address = address_of(warp, at, lane);
    Byte *shadow = nullptr;
    uint8_t *const to = find(at, thread, at.space, address, at.bytes * (int)at.in.size(), &shadow);
    for (size_t k = 0; to && k < at.in.size(); k++) {
        const bool undefined = warp.undefined[at.in[k]] >> lane & 1;
        if (undefined && at.space == GLOBAL)
            report(&at, "undefined data is stored to global memory", thread, address);
        for (int i = 0; i < at.bytes; i++) {
            Byte &byte = shadow[k * (size_t)at.bytes + (size_t)i];
            to[k * (size_t)at.bytes + (size_t)i] = (uint8_t)(warp.values(at.in[k])[lane] >> (8 * i));
            if (byte.state == PENDING)
                report(&at, "write to a copy before the wait for it", thread, address);
            if (const char *const race = note_write(byte, thread))
                report(&at, race, thread, address);
            byte.state = undefined ? UNDEFINED : DEFINED;
        }
    }
}

/* The target is poison until the wait. */
void Block::copy(Warp &warp, const Instruction &at, int lane) {
    const unsigned thread = warp.first + (unsigned)lane;
    const Word from = address_of(warp, at, lane), to = (uint32_t)warp.values(at.in[0])[lane];
    if (warp.undefined[at.in[0]] >> lane & 1)
        report(&at, "an address depends on undefined data", thread);
    Byte *source = nullptr, *target = nullptr;
    uint8_t *const bytes = find(at, thread, SHARED, to, at.bytes, &target);
    if (!bytes || !find(at, thread, GLOBAL, from, at.bytes, &source))
        return;
    for (int i = 0; i < at.bytes; i++) {
        if (source[i].state != DEFINED)
            report(&at, "copy of undefined data", thread, from);
        if (target[i].state == PENDING)
            report(&at, "copy over a copy that is under way", thread, to);
        const char *race = note_read(source[i], thread);
        race = race ? race : note_write(target[i], thread);
        if (race)
            report(&at, race, thread, to);
        target[i].state = PENDING;
        bytes[i] = 0xcd;
    }
    copies[thread].push_back({to, from, at.bytes, groups[thread]});
}

/* The copies of a thread that its wait is for. */
void Block::deliver(const Instruction &at, unsigned thread) {
    const bool all = at.opcode == "cp.async.wait_all";
    std::vector<Copy> left;
    for (const Copy &copy : copies[thread]) {
        if (!all && copy.group + (unsigned)at.number >= groups[thread]) {
            left.push_back(copy);
            continue;
        }
        Byte *const target = &shared.shadow[copy.to - SHARED_BASE];
        const Region *const source = find_buffer(copy.from);
        memcpy(&shared.bytes[copy.to - SHARED_BASE], source->bytes + (copy.from - source->base), (size_t)copy.bytes);
        for (int i = 0; i < copy.bytes; i++) {
            target[i].state = DEFINED;
            target[i].written = epoch;
            target[i].writer = (uint16_t)thread;
        }
    }
    copies[thread] = left;
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
