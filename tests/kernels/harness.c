#define _GNU_SOURCE
#include "harness.h"
#include "../../csrc/dispatch/cpu_features.h"
#include "../../csrc/kernels/cpu/half.h"

#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

enum { MAX_BUFFERS = 64, SHOWN_FAILURES = 20 };

const int64_t some_k[COUNT_K] = {0, 1, 3, 4, 5, 63, 64, 65, 255, 256, 257, 511, 512, 1000, 2560};
const int64_t some_n[COUNT_N] = {0, 1, 3, 4, 5, 65};
const int64_t some_m[COUNT_M] = {0, 1, 2, 3, 4, 5, 65};
int at_end = 1;

typedef struct guarded_t {
    uint8_t *pages, *data;
    size_t length, size, page; /* of the accessible pages, of the data */
} guarded_t;

static guarded_t buffers[MAX_BUFFERS];
static int buffer_count;
static long passed, failed;
static char context[256];

void set_context(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(context, sizeof context, format, arguments);
    va_end(arguments);
}

void check(int condition, const char *what) {
    if (condition) {
        passed++;
        return;
    }
    if (failed++ < SHOWN_FAILURES)
        printf("FAILED %s: %s\n", what, context);
}

int report(void) {
    printf("%ld passed, %ld failed\n", passed, failed);
    return failed != 0;
}

static void on_fault(int number) {
    static const char text[] = "FAILED: a guard page was touched: ";
    if (write(STDOUT_FILENO, text, sizeof text - 1) < 0 || write(STDOUT_FILENO, context, strlen(context)) < 0 ||
        write(STDOUT_FILENO, "\n", 1) < 0)
        _exit(2);
    _exit(number == SIGSEGV ? 1 : 2);
}

static void fatal(const char *what) {
    perror(what);
    exit(2);
}

void *buffer(size_t bytes) {
    static int handled;
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    if (!handled++) {
        fflush(stdout);
        signal(SIGSEGV, on_fault);
        signal(SIGBUS, on_fault);
    }
    if (buffer_count == MAX_BUFFERS)
        fatal("too many buffers");
    guarded_t *g = &buffers[buffer_count++];
    g->page = page;
    g->size = bytes;
    g->length = (bytes + page - 1) / page * page;
    g->pages = mmap(NULL, g->length + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (g->pages == MAP_FAILED)
        fatal("mmap");
    g->pages += page;
    if (g->length && mprotect(g->pages, g->length, PROT_READ | PROT_WRITE))
        fatal("mprotect");
    memset(g->pages, POISON, g->length);
    g->data = at_end ? g->pages + g->length - bytes : g->pages;
    return g->data;
}

void release(void) {
    int intact = 1;
    for (int i = 0; i < buffer_count; i++) {
        guarded_t *g = &buffers[i];
        for (uint8_t *b = g->pages; b < g->pages + g->length; b++)
            if (*b != POISON && (b < g->data || b >= g->data + g->size))
                intact = 0;
        munmap(g->pages - g->page, g->length + 2 * g->page);
    }
    buffer_count = 0;
    check(intact, "bytes around a buffer");
}

size_t type_size(int type) {
    return type == BT_F32 ? 4 : type == BT_I8 ? 1 : 2;
}

const char *type_name(int type) {
    static const char *const names[] = {"f32", "f16", "bf16", "i8"};
    return names[type];
}

int64_t matrix_elements(int64_t rows, int64_t columns, int64_t ld) {
    return rows == 0 || columns == 0 ? 0 : (rows - 1) * ld + columns;
}

size_t matrix_bytes(int64_t rows, int64_t columns, int64_t ld, int type) {
    return (size_t)matrix_elements(rows, columns, ld) * type_size(type);
}

uint32_t random_bits(void) {
    static uint64_t state = 0x9e3779b97f4a7c15u;
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return (uint32_t)((state * 0x2545f4914f6cdd1du) >> 32);
}

int64_t random_below(int64_t limit) {
    return (int64_t)(random_bits() % (uint32_t)limit);
}

int8_t byte_of(int fill, int64_t index) {
    switch (fill) {
    case ALL_127:
        return 127;
    case ALL_MINUS_128:
        return -128;
    case ALTERNATING:
        return index % 2 ? 127 : -128;
    default:
        return (int8_t)(random_below(256) - 128);
    }
}

/* Near enough: the sum of four uniform numbers, with variance 1. */
float random_normal(void) {
    double sum = 0.0;
    for (int i = 0; i < 4; i++)
        sum += (double)random_bits() / 4294967296.0 - 0.5;
    return (float)(sum * sqrt(3.0));
}

double value_at(const void *base, int type, int64_t index) {
    return type == BT_I8 ? (double)((const int8_t *)base)[index] : (double)bt_load(base, type, index);
}

void store_value(void *base, int type, int64_t index, float value) {
    bt_store(base, type, index, value);
}

void fill_normal(void *base, int type, int64_t count) {
    for (int64_t i = 0; i < count; i++)
        bt_store(base, type, i, random_normal());
}

int same_values(const void *a, const void *b, int type, int64_t count) {
    const size_t size = type_size(type);
    if (memcmp(a, b, size * (size_t)count) == 0)
        return 1;
    for (int64_t i = 0; i < count; i++) {
        if (memcmp((const char *)a + size * (size_t)i, (const char *)b + size * (size_t)i, size) == 0)
            continue;
        if (!isnan(value_at(a, type, i)) || !isnan(value_at(b, type, i)))
            return 0;
    }
    return 1;
}

int is_finished(const void *y, int y_type, int64_t index, float sum, const void *bias, int bias_type, int64_t row) {
    float cast;
    if (bias)
        sum += (float)value_at(bias, bias_type, row);
    store_value(&cast, y_type, 0, sum);
    return same_values(&cast, (const char *)y + (size_t)index * type_size(y_type), y_type, 1);
}

int gaps_untouched(const void *base, int64_t rows, int64_t columns, int64_t ld, int type) {
    const int64_t size = (int64_t)type_size(type);
    for (int64_t r = 0; r + 1 < rows && columns > 0; r++)
        for (int64_t b = (r * ld + columns) * size; b < (r + 1) * ld * size; b++)
            if (((const uint8_t *)base)[b] != POISON)
                return 0;
    return 1;
}

uint8_t *random_weights(int64_t n, int64_t k, int64_t ldw, int8_t *trits) {
    uint8_t *w = buffer(matrix_bytes(n, (k + 3) / 4, ldw, BT_I8));
    for (int64_t r = 0; r < n; r++) {
        for (int64_t j = 0; j < (k + 3) / 4; j++)
            w[r * ldw + j] = 0;
        for (int64_t c = 0; c < k; c++) {
            const int code = (int)random_below(3);
            trits[r * k + c] = (int8_t)(code == 0 ? 0 : code == 1 ? 1 : -1);
            w[r * ldw + c / 4] = (uint8_t)(w[r * ldw + c / 4] + (code << (2 * (c % 4))));
        }
    }
    return w;
}

void check_matrix(const void *y, const void *expected, int64_t rows, int64_t columns, int64_t ld, int type,
                  const char *what) {
    check(same_values(y, expected, type, matrix_elements(rows, columns, ld)), what);
    check(gaps_untouched(y, rows, columns, ld, type), what);
}

static int usable(const bt_kernel *kernel) {
#if defined(BT_SIMDE)
    return kernel->device == BT_CPU;
#else
    return kernel->device == BT_CPU && bt_kernel_usable(kernel);
#endif
}

const bt_kernel *next_usable(const bt_kernel *last, bt_op op) {
    for (const bt_kernel *kernel = last ? last + 1 : bt_kernels; kernel < bt_kernels + bt_kernel_count; kernel++)
        if (kernel->op == op && usable(kernel))
            return kernel;
    return NULL;
}

const bt_kernel *next_compared(const bt_kernel *last, bt_op op) {
    const bt_kernel *kernel = next_usable(last, op);
    return kernel && strcmp(kernel->variant, "scalar") == 0 ? next_usable(kernel, op) : kernel;
}
