/* The tests on the emulator: cuda_host_tests [--stop] [name of a test ...] */
#include "test.h"

char *allocate(size_t bytes, size_t, size_t) {
    return new char[bytes];
}

void release(char *memory) {
    delete[] memory;
}

std::vector<int> orders() {
    return {cusim::FORWARD, cusim::REVERSE, cusim::RANDOM};
}

int main(int argc, char **argv) {
    const std::vector<Test> tests = {{"cusim", test_cusim},
                                     {"pack, unpack, check", test_pack},
                                     {"ternary_embedding", test_embedding},
                                     {"act_quantize", test_act_quantize},
                                     {"ternary_quantize", test_quantize},
                                     {"ternary_linear_packed", test_linear_packed},
                                     {"ternary_linear_w2a8", test_linear_w2a8},
                                     {"hadamard", test_hadamard},
                                     {"trits", test_trit},
                                     {"pick", test_pick}};
    return run_tests(tests, argc, argv) ? 0 : 1;
}
