/* What the test programs share: counting, random numbers, buffers with strides, kernels of the device.
 *
 * The same tests run on two engines: cusim.cpp runs the sources of the kernels, tests/cuda_ptx runs what nvcc makes of
 * them. */
#ifndef TEST_H
#define TEST_H

#include "../../csrc/kernels/cpu/half.h"
#include "cusim.h"

#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

/* What an engine provides: the memory of a Buffer, rows of `row_bytes` that begin `step` apart, and the orders of
 * threads in which it runs a case. */
char *allocate(size_t bytes, size_t row_bytes, size_t step);
void release(char *memory);
std::vector<int> orders();

/* One case: counts it, and prints it when it fails. */
void check(bool ok, const char *format, ...) __attribute__((format(printf, 2, 3)));

extern const int64_t SIZES[13]; /* 0, 1, and around every block size */

/* Where conversions to half types decide: the smallest normal number, the largest, what rounds up to infinity. */
extern const float HALF_BOUNDS[5];

const char *type_name(int type);
int64_t type_bytes(int type);

struct Random {
    uint64_t state;
    explicit Random(uint64_t seed) : state(seed * 0x9e3779b97f4a7c15u + 1) {
    }
    uint32_t next() {
        state = state * 6364136223846793005u + 1442695040888963407u;
        return (uint32_t)(state >> 32);
    }
    int64_t below(int64_t bound) {
        return (int64_t)((uint64_t)next() * (uint64_t)bound >> 32);
    }
    float uniform() { /* (-1, 1) */
        return (float)((int32_t)next() >> 7) * 0x1p-24f;
    }
};

/* `rows` rows of `columns` elements, `stride` apart, and not a byte more, so that a sanitizer sees what goes past the
 * last. Everything is poison at first. */
struct Buffer {
    int type;
    int64_t rows, columns, stride;
    size_t bytes;
    std::unique_ptr<char[], void (*)(char *)> memory;

    Buffer(int type_, int64_t rows_, int64_t columns_, int64_t stride_)
        : type(type_), rows(rows_), columns(columns_), stride(stride_), memory(nullptr, release) {
        const int64_t elements = rows * columns == 0 ? 0 : (rows - 1) * stride + columns;
        bytes = (size_t)(elements * type_bytes(type));
        memory.reset(allocate(bytes, (size_t)(columns * type_bytes(type)), (size_t)(stride * type_bytes(type))));
        memset(memory.get(), 0xcd, bytes);
    }
    Buffer copy() const {
        Buffer other(type, rows, columns, stride);
        memcpy(other.memory.get(), memory.get(), bytes);
        return other;
    }
    template <class T = void> T *data() const {
        return (T *)(void *)memory.get();
    }
    float at(int64_t row, int64_t column) const {
        return bt_load(data(), type, row * stride + column);
    }
    void put(int64_t row, int64_t column, float value) const {
        bt_store(data(), type, row * stride + column, value);
    }
    bool equals(const Buffer &other) const {
        return bytes == other.bytes && memcmp(data(), other.data(), bytes) == 0;
    }
    bool gaps_intact() const;
    bool untouched() const; /* poison as at first */
};

Buffer random_floats(Random &random, int type, int64_t rows, int64_t columns, int64_t stride);
Buffer random_int8(Random &random, int64_t rows, int64_t columns, int64_t stride);

/* n packed rows of k legal codes; the bytes between rows are poison. */
Buffer random_packed(Random &random, int64_t n, int64_t k, int64_t stride);

/* The values in a buffer of their bytes. */
template <class T> Buffer buffer_of(const std::vector<T> &values) {
    const auto count = (int64_t)(values.size() * sizeof(T));
    Buffer buffer(BT_I8, 1, count, count);
    if (count > 0)
        memcpy(buffer.data(), values.data(), (size_t)count);
    return buffer;
}

/* Calls body under every order of threads. */
template <class Body> void for_orders(Body body) {
    static const char *const names[] = {"forward", "reverse", "random"};
    for (const int order : orders()) {
        cusim::order = (cusim::Order)order;
        body(names[order]);
    }
}

/* Scale groups of a matrix: lds and group as in the kernels' params, and how many scales there are. */
struct Grouping {
    const char *name;
    int64_t lds, group, scales;
};

/* Tensor, channel, and every group size of the list that divides k. */
std::vector<Grouping> groupings(int64_t n, int64_t k);

/* Rows of an op's kernel list that run on a device: {GPU_KERNELS(LIST)} fills an array of these. */
template <class Function> struct Kernel {
    const char *variant;
    Function *run;
    unsigned dtypes;
    uint32_t needs;
};
#define KERNEL_ON_BT_GPU(op, dtypes, variant, needs) {#variant, bt_##op##_##variant, dtypes, needs},
#define KERNEL_ON_BT_CPU(op, dtypes, variant, needs)
#define GPU_KERNEL(op, device, dtypes, variant, needs) KERNEL_ON_##device(op, dtypes, variant, needs)

struct Test {
    const char *name;
    void (*run)();
};
/* Those that the arguments of the program name, or all; whether none failed. */
bool run_tests(const std::vector<Test> &tests, int argc, char **argv);

void test_cusim();
void test_pack();
void test_embedding();
void test_act_quantize();
void test_quantize();
void test_linear_packed();
void test_linear_w2a8();
void test_hadamard();
void test_trit();
void test_pick();

#endif
