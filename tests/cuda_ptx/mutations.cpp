/* Faults put into the kernels, one at a time: what the tests launched runs again, and a fault or another result has to
 * show. Launches are replayed on copies of the memory that they began with. */
#include "../cuda_host/test.h"
#include "stub.h"

#include <algorithm>
#include <fstream>

using ptx::Instruction;

namespace {

struct Mutation {
    const char *name;
    bool (*change)(ptx::Kernel &kernel, Instruction &at); /* false: not this instruction */
    bool all;                                             /* every place is tried, and has to be found */
    size_t launches;                                      /* that a change is tried with, of every cost */
    uint8_t way = ptx::ON | ptx::JUMPED;                  /* that the instruction has to go in them */
};

struct Site {
    ptx::Kernel *kernel;
    size_t index;
};

} // namespace

static bool is_mma(const Instruction &at) {
    return at.kind == ptx::MMA;
}

/* The comparison with its bound moved by one, which matters where it is met. */
static bool move_bound(ptx::Kernel &, Instruction &at) {
    static const char *const other[][2] = {{".lt.", ".le."}, {".le.", ".lt."}, {".gt.", ".ge."}, {".ge.", ".gt."}};
    for (const auto &pair : other)
        if (const size_t place = at.opcode.find(pair[0]); at.is_order && place != std::string::npos) {
            at.compute = ptx::find_form(std::string(at.opcode).replace(place, 4, pair[1]))->compute;
            return true;
        }
    return false;
}

/* A constant with another lowest bit, in a register that a kernel has for it. */
static bool change_constant(ptx::Kernel &kernel, Instruction &at) {
    static std::map<const ptx::Kernel *, int> registers;
    for (int &slot : at.in)
        if (const auto found = kernel.constants.find(slot);
            at.kind == ptx::COMPUTE && found != kernel.constants.end()) {
            const auto [own, is_new] = registers.emplace(&kernel, kernel.register_count);
            kernel.register_count += is_new;
            kernel.constants[own->second] = found->second ^ 1;
            slot = own->second;
            return true;
        }
    return false;
}

static bool remove(Instruction &at, ptx::Kind kind) {
    const bool is = at.kind == kind;
    at.kind = is ? ptx::NOTHING : at.kind;
    return is;
}

static bool move_address(ptx::Kernel &, Instruction &at) {
    at.offset += at.bytes * (int64_t)(at.kind == ptx::STORE ? at.in : at.out).size();
    return (at.kind == ptx::LOAD || at.kind == ptx::STORE) && at.space != ptx::PARAM;
}

static const Mutation MUTATIONS[] = {
    {"barrier removed", [](ptx::Kernel &, Instruction &at) { return remove(at, ptx::BARRIER); }, true, ~0ul},
    {"warp barrier removed", [](ptx::Kernel &, Instruction &at) { return remove(at, ptx::WARP_BARRIER); }, true, ~0ul},
    {"wait for a group less", [](ptx::Kernel &, Instruction &at) { return ++at.number, at.kind == ptx::WAIT; }, true,
     ~0ul},
    {"commit removed", [](ptx::Kernel &, Instruction &at) { return remove(at, ptx::COMMIT); }, true, ~0ul},
    {"mma: words of a",
     [](ptx::Kernel &, Instruction &at) { return is_mma(at) && (std::swap(at.in[1], at.in[2]), true); }, false, ~0ul},
    {"mma: words of b",
     [](ptx::Kernel &, Instruction &at) { return is_mma(at) && (std::swap(at.in[4], at.in[5]), true); }, false, ~0ul},
    {"mma: words of d",
     [](ptx::Kernel &, Instruction &at) { return is_mma(at) && (std::swap(at.out[1], at.out[2]), true); }, false, ~0ul},
    {"bytes permuted",
     [](ptx::Kernel &, Instruction &at) { return at.opcode == "prmt.b32" && (std::swap(at.in[0], at.in[1]), true); },
     false, 12},
    {"branch reversed",
     [](ptx::Kernel &, Instruction &at) {
         return at.guard_not = !at.guard_not, at.kind == ptx::BRANCH && at.guard >= 0;
     },
     false, 12},
    {"address by one element", move_address, false, 12},
    {"bound by one", move_bound, false, ~0ul, ptx::MET},
    {"constant by one", change_constant, false, 12}};

/* Barriers that the kernels could do without: the last of a reduction, where the caller has another before the scratch
 * is used again. */
static const std::map<std::string, size_t> REDUNDANT = {
    {"quantize", 1}, {"quantize_sixteens", 1}, {"quantize_digits", 1}, {"optimum", 1}};

/* Whether a launch shows that something is wrong. */
static bool shows(const stub::Recording &recording) {
    std::map<ptx::Word, ptx::Region> memory;
    for (const auto &region : recording.before) {
        ptx::Region &copy = memory[region.base] = region;
        copy.bytes = copy.own.data();
        copy.touched = 0;
    }
    memory.swap(ptx::buffers);
    ptx::budget = ptx::executed + 4 * recording.cost + 10000;
    bool wrong = false;
    try {
        ptx::run(*recording.kernel, recording.launch);
        for (const auto &region : recording.after)
            wrong = wrong || ptx::buffers.at(region.base).own != region.own;
    } catch (const ptx::Stopped &) {
        wrong = true;
    }
    memory.swap(ptx::buffers);
    ptx::take_faults();
    ptx::budget = ~0ull;
    return wrong;
}

static bool is_found(const Mutation &mutation, const Site &site) {
    std::vector<const stub::Recording *> launches;
    for (const auto &recording : stub::recordings)
        if (recording.kernel == site.kernel && (recording.ways[site.index] & mutation.way))
            launches.push_back(&recording);
    std::sort(launches.begin(), launches.end(), [](auto *a, auto *b) { return a->cost < b->cost; });
    Instruction &at = site.kernel->code[site.index];
    const Instruction before = at;
    mutation.change(*site.kernel, at);
    const size_t most = std::min(launches.size(), mutation.launches);
    bool found = false;
    for (size_t i = 0; i < most && !found; i++)
        found = shows(*launches[i * launches.size() / most]);
    at = before;
    return found;
}

static std::string name_of(const Mutation &mutation, const Site &site) {
    const Instruction &at = site.kernel->code[site.index];
    return std::string(mutation.name) + ": " + site.kernel->file + ":" + std::to_string(at.line) + ": " +
           site.kernel->name + ": " + at.opcode;
}

/* The places of a change that some launch takes, in the order in which they are tried; `others` gets the rest. */
static std::vector<Site> sites_of(const Mutation &mutation, uint64_t seed, std::vector<Site> &others) {
    std::map<const ptx::Kernel *, std::vector<uint8_t>> taken;
    for (const auto &recording : stub::recordings) {
        auto &ways = taken[recording.kernel];
        ways.resize(recording.ways.size());
        for (size_t i = 0; i < ways.size(); i++)
            ways[i] |= recording.ways[i];
    }
    std::vector<Site> sites;
    for (auto &[name, kernel] : ptx::kernels)
        for (size_t i = 0; i < taken[&kernel].size(); i++)
            if (Instruction copy = kernel.code[i]; taken[&kernel][i] && mutation.change(kernel, copy))
                (taken[&kernel][i] & mutation.way ? sites : others).push_back({&kernel, i});
    Random random(seed);
    for (size_t i = sites.size(); i > 1; i--)
        std::swap(sites[i - 1], sites[(size_t)random.below((int64_t)i)]);
    return sites;
}

/* What is known of places that have been tried, by the lines of a file. */
struct Known {
    std::map<std::string, bool> found;
    std::ofstream out;

    Known(const std::string &file, bool goes_on, const std::string &title) {
        std::ifstream in(file);
        std::string line;
        const bool same = goes_on && std::getline(in, line) && line == title; /* the same kernels and cases */
        while (same && std::getline(in, line))
            if (line.starts_with("found ") || line.starts_with("survives "))
                found[line.substr(line.find(' ') + 1)] = line[0] == 'f';
        out.open(file, same ? std::ios::app : std::ios::trunc);
        if (!same)
            out << title << std::endl;
    }
    bool is_found(const Mutation &mutation, const Site &site) {
        const std::string name = name_of(mutation, site);
        const auto [entry, is_new] = found.emplace(name, false);
        if (is_new) {
            entry->second = ::is_found(mutation, site);
            out << (entry->second ? "found " : "survives ") << name << std::endl;
        }
        return entry->second;
    }
};

void run_mutations(const std::string &folder, bool goes_on, size_t sample, uint64_t seed) {
    ptx::recording = false;
    ptx::stop_at_fault = true;
    uint64_t cost = 0, code = 0;
    for (const auto &recording : stub::recordings) {
        check(!shows(recording), "%s: a launch differs when it runs again", recording.kernel->name.c_str());
        cost += recording.cost;
    }
    for (const auto &[name, kernel] : ptx::kernels)
        for (const auto &at : kernel.code)
            code = code * 31 + std::hash<std::string>()(at.opcode) + (uint64_t)at.line;
    printf("mutations                %6zu launches to replay, of %.1f million instructions\n", stub::recordings.size(),
           (double)cost / 1e6);
    Known known(folder + (goes_on ? "/mutations.txt" : "/mutations_short.txt"), goes_on,
                std::to_string(code) + " " + std::to_string(stub::recordings.size()) + " " + std::to_string(cost));
    std::ofstream out_of_reach(folder + "/out_of_reach.txt");
    for (const auto &mutation : MUTATIONS) {
        size_t found = 0;
        std::vector<Site> others;
        const auto sites = sites_of(mutation, seed, others);
        for (const Site &site : others)
            out_of_reach << name_of(mutation, site) << std::endl;
        const size_t tried = mutation.all ? sites.size() : std::min(sites.size(), sample);
        std::map<std::string, size_t> survivors;
        for (size_t i = 0; i < tried; i++)
            ++(known.is_found(mutation, sites[i]) ? found : survivors[sites[i].kernel->name]);
        printf("  %-24s %5zu of %5zu found; of %zu places, %zu out of reach\n", mutation.name, found, tried,
               sites.size() + others.size(), others.size());
        fflush(stdout);
        for (const auto &[name, count] : survivors)
            check(!mutation.all || (REDUNDANT.count(name) && count <= REDUNDANT.at(name)),
                  "%s: %s: no test needs it at %zu places", name.c_str(), mutation.name, count);
    }
    ptx::stop_at_fault = false;
}
