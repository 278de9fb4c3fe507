/* The tests on the interpreter: cuda_ptx_tests FOLDER, which has the PTX. */
#include "../cuda_host/test.h"
#include "stub.h"

#include <filesystem>
#include <fstream>

long bt_max_blocks = 3, bt_quantize_keys = 1024, bt_bulk_tall = 2;
static bool is_long;

cusim::Order cusim::order;

/* At an odd multiple of 16, in the middle of what belongs to nobody. */
enum { AROUND = 512 };

char *allocate(size_t bytes, size_t row_bytes, size_t step) {
    char *const block = (char *)aligned_alloc(32, (bytes + 2 * AROUND + 31) / 32 * 32);
    char *const memory = block + AROUND - 16;
    ptx::Region buffer;
    buffer.base = (ptx::Word)memory;
    buffer.size = bytes;
    buffer.row_bytes = row_bytes, buffer.step = step ? step : 1;
    buffer.bytes = (uint8_t *)memory;
    ptx::buffers[buffer.base] = buffer;
    return memory;
}

void release(char *memory) {
    if (!memory)
        return;
    ptx::buffers.erase((ptx::Word)memory);
    free(memory - AROUND + 16);
}

/* Races show in any order, so a case has one, in turn. */
std::vector<int> orders() {
    static int turn;
    if (is_long)
        return {cusim::FORWARD, cusim::REVERSE};
    turn++;
    return {turn % 2 ? cusim::FORWARD : cusim::REVERSE};
}

bool stub::is_reversed() {
    return cusim::order == cusim::REVERSE;
}

static std::string folder;
static size_t sample = 100;
static uint64_t seed;

static void coverage() {
    FILE *const list = fopen((folder + "/not_executed.txt").c_str(), "w");
    size_t all = 0, all_executed = 0;
    printf("%-24s instructions executed of all, by kernel; the others are in %s/not_executed.txt\n", "coverage",
           folder.c_str());
    for (const auto &[name, kernel] : ptx::kernels) {
        size_t executed = 0;
        for (const auto &at : kernel.code) {
            executed += at.last_launch > 0;
            if (!at.last_launch)
                fprintf(list, "%s:%d: %s: %s\n", kernel.file.c_str(), at.line, kernel.name.c_str(), at.opcode.c_str());
        }
        printf("%8zu of %5zu  %s: %s\n", executed, kernel.code.size(), kernel.file.c_str(), kernel.name.c_str());
        check(executed > 0, "%s: no test launches this kernel", kernel.name.c_str());
        all += kernel.code.size();
        all_executed += executed;
    }
    fclose(list);
    printf("%8zu of %5zu  in %zu kernels\n", all_executed, all, ptx::kernels.size());
}

static void mutations() {
    run_mutations(folder, is_long, sample, seed);
}

/* FOLDER [--long] [--truncate] [--seed=N] [--sample=N] [name of a test ...] */
int main(int argc, char **argv) {
    if (argc < 2)
        return 2;
    folder = argv[1];
    bool everything = true;
    for (int i = 2; i < argc; i++) {
        const std::string word = argv[i];
        is_long = is_long || word == "--long";
        ptx::truncate_sums = ptx::truncate_sums || word == "--truncate";
        seed = word.starts_with("--seed=") ? strtoull(argv[i] + 7, nullptr, 10) : seed;
        sample = word.starts_with("--sample=") ? strtoull(argv[i] + 9, nullptr, 10) : sample;
        everything = everything && word[0] == '-';
    }
    for (const auto &file : std::filesystem::directory_iterator(folder))
        if (std::ifstream text(file.path()); file.path().extension() == ".ptx")
            ptx::parse(text, file.path().string());
    std::vector<Test> tests = {{"interpreter", test_faults},
                               {"pack, unpack, check", test_pack},
                               {"ternary_embedding", test_embedding},
                               {"act_quantize", test_act_quantize},
                               {"ternary_quantize", test_quantize},
                               {"ternary_linear_packed", test_linear_packed},
                               {"ternary_linear_w2a8", test_linear_w2a8},
                               {"hadamard", test_hadamard},
                               {"trits", test_trit},
                               {"limits", test_limits}};
    if (everything) {
        tests.push_back({"coverage", coverage});
        tests.push_back({"mutations", mutations});
    }
    ptx::recording = true;
    const bool passed = run_tests(tests, argc - 1, argv + 1);
    printf("%.1f million instructions of warps\n", (double)ptx::executed / 1e6);
    return passed ? 0 : 1;
}
