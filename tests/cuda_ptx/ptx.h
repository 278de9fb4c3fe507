/* Executes PTX without a device: the part of it that nvcc emits for our kernels.
 *
 * A warp runs in lock-step, reconverges at immediate post-dominators and stops at barriers; blocks run one after
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

typedef uint64_t Word; /* of a register; the bits above its type mean nothing */
enum { WARP = 32 };
enum : uint8_t { ON = 1, JUMPED = 2 };

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
    MMA,
    BRANCH,
    BARRIER,
    RETURN,
    NOTHING
};

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
    int bytes = 0;            /* of an element */
    bool is_signed = false;   /* a load extends by the sign */
    bool uniform = false;     /* bra.uni, and ld.global.nc */
    int target = 0, join = 0; /* of a branch: where it goes, and where all paths meet again */
    int number = 0;           /* bytes of a copy, groups that a wait leaves, elements of an mma register */
    uint64_t executed = 0;    /* how often by a warp, */
    uint32_t last_launch = 0; /* when, */
    uint8_t ways = 0;         /* and which ways it went then: on, and to its target */
};

struct Kernel {
    struct Parameter {
        size_t at, bytes;
    };
    struct Array {
        Word at;
        size_t bytes;
    };
    std::string file, name; /* the name as C++ has it */
    std::vector<Instruction> code;
    std::vector<Parameter> parameters;
    std::map<std::string, Word> symbols;
    std::map<std::string, int> registers;
    std::map<int, Word> constants; /* registers that never change */
    int register_count = 0;
    std::vector<Array> shared; /* static arrays, at no better an alignment than they ask for, with gaps between them */
    Word shared_end = SHARED_BASE, dynamic_at = 0; /* 0: no dynamic shared memory */
    size_t param_bytes = 0, local_bytes = 0, shared_bytes = 0;
    unsigned max_threads = 0; /* 0: no .maxntid */
};

extern std::map<std::string, Kernel> kernels; /* by the names of the PTX */
void parse(std::istream &text, const std::string &file);
void find_joins(Kernel &kernel); /* fills Instruction::join */
[[noreturn]] void stop(const Kernel &kernel, int line, const std::string &why);

/* Faults, gathered by kernel and instruction. */
void fault(const Kernel &kernel, const Instruction *at, const std::string &what, const std::string &where);
size_t fault_count();
std::string take_faults(); /* their text; forgets them */

/* Memory: what is known of a byte, and a piece of it. */
enum State : uint8_t { UNDEFINED, DEFINED, PENDING, GAP }; /* PENDING: of a copy that is under way */
struct Byte {
    uint32_t written = 0, read = 0; /* epochs; one ends at each barrier, block and launch */
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
extern uint32_t launch_number, epoch, launch_epoch, block_epoch; /* now, and the first of this launch and block */
extern std::map<Word, Region> buffers;                           /* global memory */
extern bool recording;
extern std::vector<Region> recorded; /* the buffers that this launch touched, as they were before it */
Region *find_buffer(Word address);
/* A read or write of a byte by a thread of the block; gives what is wrong about it, or null. */
const char *note_read(Byte &byte, unsigned thread);
const char *note_write(Byte &byte, unsigned thread);

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

/* The registers of an mma.sync, and the lanes that are undefined in them. */
struct Fragments {
    const Word *in[10];
    uint32_t undefined_in[10];
    Word out[4][WARP];
    uint32_t undefined_out[4];
};
void multiply(const Instruction &at, Fragments &fragments);

} // namespace ptx

#endif
