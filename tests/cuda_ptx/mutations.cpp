/* Faults put into the kernels, one at a time: what the tests launched runs again, and a fault or another result has to
 * show. Launches are replayed on copies of the memory that they began with. */
#include "stub.h"

#include <algorithm>

using ptx::Instruction;
using ptx::Kernel;

namespace {

constexpr size_t ALL = ~0ull;

struct Mutation {
    const char *name;
    bool (*change)(Kernel &kernel, Instruction &at); /* false: not this instruction */
    size_t sites, launches;                          /* that `check` tries, evenly spread */
};

struct Site {
    Kernel *kernel;
    size_t index;
};

} // namespace

static bool is_mma(const Instruction &at) {
    return at.kind == ptx::MMA;
}

/* The comparison with its bound moved by one. */
static bool move_bound(Kernel &, Instruction &at) {
    static const char *const other[][2] = {{".lt.", ".le."}, {".le.", ".lt."}, {".gt.", ".ge."}, {".ge.", ".gt."}};
    if (at.opcode.compare(0, 5, "setp.") != 0 || at.opcode.find(".f") != std::string::npos)
        return false;
    for (const auto &pair : other)
        if (const size_t place = at.opcode.find(pair[0]); place != std::string::npos) {
            at.compute = ptx::find_form(std::string(at.opcode).replace(place, 4, pair[1]))->compute;
            return true;
        }
    return false;
}

/* A constant with another lowest bit. */
static bool change_constant(Kernel &kernel, Instruction &at) {
    for (int &slot : at.in)
        if (const auto found = kernel.constants.find(slot);
            at.kind == ptx::COMPUTE && found != kernel.constants.end()) {
            const ptx::Word value = found->second ^ 1;
            slot = kernel.register_count++;
            kernel.constants[slot] = value;
            return true;
        }
    return false;
}

static bool drop(Instruction &at, ptx::Kind kind) {
    const bool is = at.kind == kind;
    at.kind = is ? ptx::NOTHING : at.kind;
    return is;
}

static const Mutation MUTATIONS[] = {
    {"barrier removed", [](Kernel &, Instruction &at) { return drop(at, ptx::BARRIER); }, ALL, ALL},
    {"wait for a group less", [](Kernel &, Instruction &at) { return ++at.number, at.kind == ptx::WAIT; }, ALL, ALL},
    {"commit removed", [](Kernel &, Instruction &at) { return drop(at, ptx::COMMIT); }, ALL, ALL},
    {"mma: words of a", [](Kernel &, Instruction &at) { return is_mma(at) && (std::swap(at.in[1], at.in[2]), true); },
     100, ALL},
    {"mma: words of b", [](Kernel &, Instruction &at) { return is_mma(at) && (std::swap(at.in[4], at.in[5]), true); },
     100, ALL},
    {"mma: words of d", [](Kernel &, Instruction &at) { return is_mma(at) && (std::swap(at.out[1], at.out[2]), true); },
     100, ALL},
    {"bytes permuted",
     [](Kernel &, Instruction &at) { return at.opcode == "prmt.b32" && (std::swap(at.in[0], at.in[1]), true); }, 100,
     12},
    {"branch reversed",
     [](Kernel &, Instruction &at) {
         return at.kind == ptx::BRANCH && at.guard >= 0 && (at.guard_not = !at.guard_not, true);
     },
     100, 12},
    {"address by one element",
     [](Kernel &, Instruction &at) {
         at.offset += at.bytes * (int64_t)(at.kind == ptx::STORE ? at.in : at.out).size();
         return (at.kind == ptx::LOAD || at.kind == ptx::STORE) && at.space != ptx::PARAM;
     },
     100, 12},
    {"bound by one", move_bound, 100, 12},
    {"constant by one", change_constant, 100, 12}};

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
        if (recording.kernel == site.kernel && recording.ways[site.index])
            launches.push_back(&recording);
    std::sort(launches.begin(), launches.end(), [](auto *a, auto *b) { return a->cost < b->cost; });
    Instruction &at = site.kernel->code[site.index];
    const Instruction before = at;
    mutation.change(*site.kernel, at);
    const size_t most = std::min(launches.size(), mutation.launches);
    bool found = false; /* by launches of every cost */
    for (size_t i = 0; i < most && !found; i++)
        found = shows(*launches[i * launches.size() / most]);
    at = before;
    return found;
}

void run_mutations(const std::string &folder, bool all) {
    ptx::recording = false;
    ptx::stop_at_fault = true;
    uint64_t cost = 0;
    for (const auto &recording : stub::recordings) {
        check(!shows(recording), "%s: a launch differs when it runs again", recording.kernel->name.c_str());
        cost += recording.cost;
    }
    printf("mutations                %6zu launches to replay, of %.1f million instructions\n", stub::recordings.size(),
           (double)cost / 1e6);
    FILE *const list = fopen((folder + "/survivors.txt").c_str(), "w");
    for (const auto &mutation : MUTATIONS) {
        std::vector<Site> sites;
        for (auto &[name, kernel] : ptx::kernels)
            for (size_t i = 0; i < kernel.code.size(); i++)
                if (Instruction copy = kernel.code[i]; copy.executed && mutation.change(kernel, copy))
                    sites.push_back({&kernel, i});
        const size_t tried = all ? sites.size() : std::min(sites.size(), mutation.sites);
        size_t found = 0;
        std::map<std::string, size_t> survivors;
        for (size_t i = 0; i < tried; i++) {
            const Site &site = sites[i * sites.size() / tried];
            const Instruction &at = site.kernel->code[site.index];
            if (is_found(mutation, site)) {
                found++;
                continue;
            }
            survivors[site.kernel->name]++;
            fprintf(list, "%s: %s:%d: %s: %s\n", mutation.name, site.kernel->file.c_str(), at.line,
                    site.kernel->name.c_str(), at.opcode.c_str());
        }
        printf("  %-24s %5zu of %5zu found; %zu sites in all\n", mutation.name, found, tried, sites.size());
        fflush(stdout);
        for (const auto &[name, count] : survivors)
            check(mutation.sites != ALL || (REDUNDANT.count(name) && count <= REDUNDANT.at(name)),
                  "%s: %s: no test needs it at %zu places", name.c_str(), mutation.name, count);
    }
    fclose(list);
    ptx::stop_at_fault = false;
}
