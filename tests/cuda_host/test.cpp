/* What test.h declares for every engine. */
#include "test.h"

#include <ctime>

const float HALF_BOUNDS[5] = {0x1p-14f, -0x1p-14f, 65504.0f, 65519.996f, INFINITY};
const int64_t SIZES[13] = {0, 1, 3, 4, 5, 31, 32, 33, 63, 64, 65, 127, 257};

static long passed, failed;
static bool stop; /* at the first failure */

void check(bool ok, const char *format, ...) {
    (ok ? passed : failed)++;
    if (ok || failed > 20)
        return;
    va_list arguments;
    va_start(arguments, format);
    printf("FAILED ");
    vprintf(format, arguments);
    printf("\n");
    va_end(arguments);
    if (stop)
        exit(1);
}

const char *type_name(int type) {
    static const char *const names[] = {"f32", "f16", "bf16", "i8"};
    return names[type];
}

int64_t type_bytes(int type) {
    return type == BT_F32 ? 4 : type == BT_I8 ? 1 : 2;
}

bool Buffer::gaps_intact() const {
    const size_t row_bytes = (size_t)(columns * type_bytes(type)), step = (size_t)(stride * type_bytes(type));
    for (size_t i = 0; i < bytes; i++)
        if (i % step >= row_bytes && data<uint8_t>()[i] != 0xcd)
            return false;
    return true;
}

bool Buffer::untouched() const {
    for (size_t i = 0; i < bytes; i++)
        if (data<uint8_t>()[i] != 0xcd)
            return false;
    return true;
}

Buffer random_floats(Random &random, int type, int64_t rows, int64_t columns, int64_t stride) {
    Buffer buffer(type, rows, columns, stride);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < columns; j++)
            buffer.put(i, j, random.uniform() + random.uniform() + random.uniform());
    return buffer;
}

Buffer random_int8(Random &random, int64_t rows, int64_t columns, int64_t stride) {
    Buffer buffer(BT_I8, rows, columns, stride);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < columns; j++)
            buffer.data<int8_t>()[i * stride + j] = (int8_t)(random.below(256) - 128);
    return buffer;
}

Buffer random_packed(Random &random, int64_t n, int64_t k, int64_t stride) {
    Buffer buffer(BT_I8, n, bt_div_up(k, 4), stride);
    for (int64_t r = 0; r < n; r++) {
        uint8_t *row = buffer.data<uint8_t>() + r * stride;
        for (int64_t c = 0; c < k; c++) {
            if (c % 4 == 0)
                row[c / 4] = 0;
            row[c / 4] = (uint8_t)(row[c / 4] | random.below(3) << (2 * (c % 4)));
        }
    }
    return buffer;
}

std::vector<Grouping> groupings(int64_t n, int64_t k) {
    std::vector<Grouping> list = {{"tensor", 0, k, 1}, {"channel", 1, k, n}};
    for (const int64_t group : {4, 12, 20, 64, 128})
        if (k > 0 && k % group == 0)
            list.push_back({"group", k / group, group, n * (k / group)});
    return list;
}

/* Whether the program was told to run this test, or none in particular. */
static bool wanted(const char *name, int argc, char **argv) {
    int names = 0;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], name) == 0)
            return true;
        names += argv[i][0] != '-';
    }
    return names == 0;
}

bool run_tests(const std::vector<Test> &tests, int argc, char **argv) {
    for (int i = 1; i < argc; i++)
        stop = stop || strcmp(argv[i], "--stop") == 0;
    for (const auto &test : tests) {
        if (!wanted(test.name, argc, argv))
            continue;
        const long before = passed + failed;
        const clock_t start = clock();
        test.run();
        printf("%-24s %6ld cases %6.1f s\n", test.name, passed + failed - before,
               (double)(clock() - start) / CLOCKS_PER_SEC);
        fflush(stdout);
    }
    printf("%ld passed, %ld failed\n", passed, failed);
    return failed == 0;
}
