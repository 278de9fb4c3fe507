/* Executes PTX without a device: the part of it that nvcc emits for our kernels.
 *
 * A warp runs in lock-step, the lanes that are furthest behind first, so that paths meet again; blocks run one after
 * another. Every byte of shared and global memory knows whether it is defined, and who wrote and read it last since
 * when, so that a race is found whatever the order of the threads. Every register knows for each lane whether it is
 * defined. */
#ifndef PTX_H
#define PTX_H

#include <cstddef>
#include <cstdint>
#include <istream>
#include <map>
#include <string>
#include <vector>

namespace ptx {

typedef uint64_t Word;            /* of a register; the bits above its type mean nothing */
enum { WARP = 32, SPECIAL = 12 }; /* lanes; registers that say who a thread is */

/* The addresses of the spaces; a generic address has the window added. Global memory lies where the host has it. */
enum Space : uint8_t { GENERIC, GLOBAL, SHARED, LOCAL, PARAM };
constexpr Word PARAM_BASE = 0x100, SHARED_BASE = 0x400, LOCAL_BASE = 0x40;
constexpr Word SHARED_WINDOW = 0x7e00000000000000, LOCAL_WINDOW = 0x7d00000000000000, WINDOW_MASK = 0xff00000000000000;

/* What the lanes of `mask` compute from their registers. */
typedef void Compute(const Word *const *in, Word *out, uint32_t mask);
struct Form {
    Compute *compute;
    size_t operands;
};
const Form *find_form(const std::string &opcode); /* null: forms.cpp does not have it */
bool take_division_by_zero();                     /* whether there was one since the last call */

/* Up to UNPACK, register by register; up to WAIT, lane by lane; from MMA on, by the whole warp. */
enum Elements { BYTES, HALVES, BRAIN_HALVES };
enum Kind : uint8_t {
    COMPUTE,
    SELECT,
    PACK,
    UNPACK,
    LOAD,
    STORE,
    COPY,
    COMMIT,
    WAIT,
    BRANCH,
    RETURN,
    NOTHING,
    MMA,
    WARP_BARRIER,
    BARRIER
};

/* Where an instruction went: on, to its target; and MET: a comparison of order whose operands were equal. */
enum Way : uint8_t { ON = 1, JUMPED = 2, MET = 4 };

struct Instruction {
    Kind kind = COMPUTE;
    std::string opcode;
    int line = 0;
    std::vector<int> out, in; /* registers; constants have registers of their own */
    int guard = -1;           /* its predicate, */
    bool guard_not = false;   /* or the negation */
    Compute *compute = nullptr;
    Space space = GENERIC;
    int base = -1; /* the register of an address */
    int64_t offset = 0;
    int bytes = 0;            /* of an element, of a copy, of what an order is asked of */
    bool is_signed = false;   /* a load extends by the sign */
    bool uniform = false;     /* bra.uni, and ld.global.nc */
    bool is_order = false;    /* <, <=, >, >= of integers */
    int number = 0;           /* where a branch goes, groups that a wait leaves, the elements of mma.sync */
    uint32_t last_launch = 0; /* that executed it, */
    uint8_t ways = 0;         /* and how, see Way */
};

struct Kernel {
    struct Range {
        Word at;
        size_t bytes;
    };
    std::string file, name; /* the name as C++ has it */
    std::vector<Instruction> code;
    std::vector<Range> parameters;
    std::map<std::string, Word> symbols;
    std::map<std::string, int> registers;
    std::map<int, Word> constants; /* registers that never change */
    int register_count = 0;
    std::vector<Range> shared; /* static arrays, at no better an alignment than they ask for, with gaps between them */
    Word shared_end = SHARED_BASE, dynamic_at = 0; /* 0: no dynamic shared memory */
    size_t param_bytes = 0, local_bytes = 0, shared_bytes = 0;
    unsigned max_threads = 0; /* 0: no .maxntid */
};

extern std::map<std::string, Kernel> kernels; /* by the names of the PTX */
void parse(std::istream &text, const std::string &file);
[[noreturn]] void stop(const Kernel &kernel, int line, const std::string &why);

/* Faults, gathered by kernel and instruction. */
void fault(const Kernel &kernel, const Instruction *at, const std::string &what, const std::string &where);
std::string take_faults(); /* their text; forgets them */

/* Memory: what is known of a byte, and a piece of it. */
enum State : uint8_t { UNDEFINED, DEFINED, PENDING, GAP }; /* PENDING: of a copy that is under way */
struct Byte {
    uint32_t written = 0, read = 0; /* when: the time goes on at each barrier, block and launch */
    uint16_t writer = 0, reader = 0;
    State state = UNDEFINED;
};
struct Region {
    Word base = 0;
    size_t size = 0, row_bytes = 0, step = 1; /* of a row of a buffer, and from one to the next */
    uint8_t *bytes = nullptr;
    std::vector<uint8_t> own; /* the bytes of a region that is not the host's */
    std::vector<Byte> shadow;
    uint32_t touched = 0; /* the last launch that used it */

    void resize(Word at, size_t count, State state);
};
extern std::map<Word, Region> buffers; /* global memory */
extern bool recording;
extern std::vector<Region> recorded; /* the buffers that this launch touched, as they were before it */

/* Now, and when this launch, this block, the time since its last barrier, and that of the running warp began. */
struct Times {
    uint32_t now = 1, launch = 1, block = 1, barrier = 1, warp = 1;
};
extern Times times;
extern uint32_t launch_number;

struct Launch {
    unsigned grid[3], block[3];
    size_t shared;
    std::vector<uint8_t> params;
};
Launch make_launch(const Kernel &kernel, const unsigned *grid, const unsigned *block, size_t shared, void **arguments);
void run(Kernel &kernel, const Launch &launch);
struct Stopped {};                /* thrown where a kernel goes beyond the budget, or at a fault if so wanted */
extern uint64_t executed, budget; /* instructions of warps */
extern bool stop_at_fault;
extern bool reverse_warps; /* they take turns from the last to the first */
extern bool truncate_sums; /* of mma: like hardware, else exact and rounded once */

struct Warp {
    unsigned first;                         /* its threads */
    uint32_t all = 0, since = 0;            /* its lanes, and when its last barrier was */
    const Instruction *barrier = nullptr;   /* of the block, where it waits */
    int pc = 0;                             /* the next instruction, */
    uint32_t mask = 0;                      /* for these lanes, */
    bool together = false;                  /* which have waited for the others */
    std::map<int, uint32_t> ready, waiting; /* other lanes by their next instruction; those that need the whole warp */
    std::vector<Word> registers;
    std::vector<uint32_t> undefined; /* lanes of a register */

    Word *values(int slot) {
        return &registers[WARP * (size_t)slot];
    }
    void define(int slot, uint32_t mask, uint32_t undefined_lanes) {
        undefined[slot] = (undefined[slot] & ~mask) | (undefined_lanes & mask);
    }
};
void multiply(Warp &warp, const Instruction &at); /* mma.sync */

/* 16 bytes to a place in shared memory. */
enum { COPY_BYTES = 16 };
struct Copy {
    size_t to;
    const uint8_t *from;
    unsigned group;
};

struct Block {
    Kernel &kernel;
    const Launch &launch;
    unsigned id[3] = {0, 0, 0}, threads;
    Region params, shared;
    std::vector<Region> local; /* of each thread */
    std::vector<Warp> warps;
    std::vector<std::vector<Copy>> copies; /* of each thread, under way */
    std::vector<unsigned> groups;          /* that it has committed */

    Block(Kernel &kernel_, const Launch &launch_);
    void start();
    void run();
    void advance(Warp &warp);
    bool choose(Warp &warp);
    uint32_t guarded(Warp &warp, const Instruction &at, uint32_t mask);
    void execute(Warp &warp, Instruction &at, uint32_t mask);
    void compute(Warp &warp, Instruction &at, uint32_t mask);
    void load(Warp &warp, const Instruction &at, unsigned lane);
    void store(Warp &warp, const Instruction &at, unsigned lane);
    void copy(Warp &warp, const Instruction &at, unsigned lane);
    void deliver(const Instruction &at, unsigned thread);
    void wait_for_all();
    Word address_of(Warp &warp, const Instruction &at, int base, int64_t offset, unsigned lane);
    uint8_t *touch(const Instruction &at, unsigned thread, Space space, Word address, size_t bytes, bool write,
                   Byte **shadow);
    void report(const Instruction *at, const char *what, unsigned thread, Word address = 0) const;
};

} // namespace ptx

#endif
