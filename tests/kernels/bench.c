/* CPU time of one thread. Both products with the step that prepares the activations, in Gop/s = 2 m n k / time; that
 * step of the float product alone; ternary_quantize, in GB/s of the weights, which it reads twice and which are
 * counted once, beside a sum of the same weights; and ternary_pack, ternary_unpack and ternary_check, in GB/s of what
 * is read and written; and ops of trits, in G trits/s or Gop/s. A row of the table is run for about 0.1 s three times
 * and the best counts; the scalar rows, which are slow, run once. `bench products`, `bench quantize`, `bench pack` and
 * `bench trits` do a part of it. */
#define _POSIX_C_SOURCE 199309L
#include "../../csrc/dispatch/kernel_table.h"
#include "../../csrc/kernels/cpu/half.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const char *const type_names[] = {"f32", "f16", "bf16", "i8"};

typedef struct problem_t {
    int64_t m, n, k;
    int x_type;
    void *x[3]; /* the same activations in every type that is measured */
    float *y, *xp, *q_scale, *scale;
    uint8_t *w;
    int8_t *q;
    int32_t *q_sum;
} problem_t;

/* Aligned as torch does it: loads that cross cache lines would cost some kernels more than others. */
static void *allocate(int64_t count, size_t size) {
    return aligned_alloc(64, ((size_t)count * size + 63) / 64 * 64);
}

typedef void job_t(const bt_kernel *kernel, const void *problem, int64_t group);

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int64_t lds_of(const problem_t *a, int64_t group) {
    return a->k / group;
}

static void run_packed(const bt_kernel *kernel, const void *problem, int64_t group) {
    const problem_t *a = problem;
    const bt_ternary_linear_packed p = {.x = a->x[a->x_type],
                                        .w = a->w,
                                        .scale = a->scale,
                                        .y = a->y,
                                        .xp = a->xp,
                                        .m = a->m,
                                        .n = a->n,
                                        .k = a->k,
                                        .ldx = a->k,
                                        .ldw = a->k / 4,
                                        .ldy = a->n,
                                        .lds = lds_of(a, group),
                                        .group = group,
                                        .ldxp = a->k,
                                        .x_type = a->x_type,
                                        .xp_type = bt_packed_xp_type(kernel->reads),
                                        .y_type = a->x_type};
    bt_ternary_linear_packed_prepare(&p, 0, a->m);
    ((bt_ternary_linear_packed_fn *)kernel->run)(&p, 0, bt_tiles(a->m, a->n));
}

static void run_w2a8(const bt_kernel *kernel, const void *problem, int64_t group) {
    const problem_t *a = problem;
    const bt_act_quantize quantize = {.digits = 1,
                                      .x = a->x[BT_F32],
                                      .q = a->q,
                                      .scale = a->q_scale,
                                      .sum = a->q_sum,
                                      .m = a->m,
                                      .k = a->k,
                                      .ldx = a->k,
                                      .ldq = a->k,
                                      .order = BT_ORDER_PLANES};
    const bt_ternary_linear_w2a8 p = {.digits = 1,
                                      .q = a->q,
                                      .q_scale = a->q_scale,
                                      .q_sum = a->q_sum,
                                      .w = a->w,
                                      .scale = a->scale,
                                      .y = a->y,
                                      .m = a->m,
                                      .n = a->n,
                                      .k = a->k,
                                      .ldq = a->k,
                                      .ldw = a->k / 4,
                                      .ldy = a->n,
                                      .lds = lds_of(a, group),
                                      .group = group};
    const bt_kernel *first = bt_pick(BT_OP_act_quantize, BT_CPU, BT_F32, NULL, "auto");
    ((bt_act_quantize_fn *)first->run)(&quantize, 0, a->m);
    ((bt_ternary_linear_w2a8_fn *)kernel->run)(&p, 0, bt_tiles(a->m, a->n));
}

static double seconds(job_t *job, const bt_kernel *kernel, const void *problem, int64_t group) {
    double best = 1e9;
    const int slow = kernel && strcmp(kernel->variant, "scalar") == 0;
    for (int round = 0; round < (slow ? 1 : 3); round++) {
        int count = 0;
        const double start = now();
        do {
            job(kernel, problem, group);
            count++;
        } while (now() - start < 0.1);
        const double time = (now() - start) / count;
        best = time < best ? time : best;
    }
    return best;
}

static void measure_row(const bt_kernel *kernel, job_t *job, const problem_t *a) {
    const int slow = strcmp(kernel->variant, "scalar") == 0;
    printf("%5ld x %5ld  batch %3ld  %-22s %-11s %-4s", (long)a->n, (long)a->k, (long)a->m, bt_op_name(kernel->op),
           kernel->variant, type_names[a->x_type]);
    for (int64_t group = a->k; group >= 64; group = group == a->k ? 128 : group / 2) {
        const double time = seconds(job, kernel, a, group);
        printf("  group %4ld: %8.1f us %6.1f Gop/s", (long)group, time * 1e6,
               2e-9 * (double)(a->m * a->n * a->k) / time);
        if (slow)
            break;
    }
    printf("\n");
    fflush(stdout);
}

static void measure(int64_t m, int64_t n, int64_t k) {
    problem_t a = {.m = m, .n = n, .k = k};
    for (int type = BT_F32; type <= BT_BF16; type += BT_BF16) {
        a.x[type] = allocate(m * k, type == BT_F32 ? sizeof(float) : sizeof(uint16_t));
        for (int64_t i = 0; i < m * k; i++)
            bt_store(a.x[type], type, i, (float)(rand() % 2001 - 1000) / 500.0f);
    }
    a.xp = allocate(m * k, sizeof *a.xp);
    a.y = allocate(m * n, sizeof *a.y);
    a.q_scale = allocate(m, sizeof *a.q_scale);
    a.q_sum = allocate(m, sizeof *a.q_sum);
    a.scale = allocate(n * k / 64, sizeof *a.scale);
    a.w = allocate(n * k / 4, sizeof *a.w);
    a.q = allocate(m * k, sizeof *a.q);
    for (int64_t i = 0; i < n * k / 64; i++)
        a.scale[i] = 0.01f;
    for (int64_t i = 0; i < n * k / 4; i++)
        a.w[i] = (uint8_t)(rand() % 3 | rand() % 3 << 2 | rand() % 3 << 4 | rand() % 3 << 6);
    for (const bt_kernel *kernel = bt_kernels; kernel < bt_kernels + bt_kernel_count; kernel++) {
        if (kernel->device != BT_CPU || !bt_kernel_usable(kernel))
            continue;
        a.x_type = BT_F32;
        if (kernel->op == BT_OP_ternary_linear_w2a8)
            measure_row(kernel, run_w2a8, &a);
        for (; kernel->op == BT_OP_ternary_linear_packed && a.x_type <= BT_BF16; a.x_type += BT_BF16)
            if (kernel->dtypes & BT_SET(a.x_type))
                measure_row(kernel, run_packed, &a);
    }
    free(a.x[BT_F32]), free(a.x[BT_BF16]), free(a.xp), free(a.y), free(a.q_scale), free(a.q_sum), free(a.scale);
    free(a.w), free(a.q);
}

static void print_elements(const char *what, const char *variant, double time, int64_t elements, size_t size) {
    printf("  %-22s %-11s %8.3f ns/element %6.1f GB/s\n", what, variant, 1e9 * time / (double)elements,
           1e-9 * (double)elements * (double)size / time);
    fflush(stdout);
}

enum { PREPARE_AT_ONCE = 20 }; /* one is too short for the clock */

static void run_prepare(const bt_kernel *kernel, const void *problem, int64_t group) {
    const bt_ternary_linear_packed *p = problem;
    (void)kernel, (void)group;
    for (int i = 0; i < PREPARE_AT_ONCE; i++)
        bt_ternary_linear_packed_prepare(p, 0, p->m);
}

static void measure_prepare(int64_t m, int64_t k, int type, int xp_type) {
    const size_t size = type == BT_F32 ? sizeof(float) : sizeof(uint16_t);
    void *x = allocate(m * k, size), *xp = allocate(m * k, sizeof(float));
    const bt_ternary_linear_packed p = {
        .x = x, .xp = xp, .m = m, .k = k, .ldx = k, .ldxp = k, .x_type = type, .xp_type = xp_type};
    memset(x, 0, (size_t)(m * k) * size);
    printf("batch %3ld x %5ld, to %-4s  ", (long)m, (long)k, type_names[xp_type]);
    print_elements("prepare", type_names[type], seconds(run_prepare, NULL, &p, 0) / PREPARE_AT_ONCE, m * k, size);
    free(x), free(xp);
}

static void measure_prepares(int64_t m, int64_t k) {
    for (int type = BT_F32; type <= BT_BF16; type++)
        measure_prepare(m, k, type, BT_F32);
    measure_prepare(m, k, BT_BF16, BT_BF16);
}

static void run_quantize(const bt_kernel *kernel, const void *problem, int64_t group) {
    (void)group;
    ((bt_ternary_quantize_fn *)kernel->run)(problem, 0, bt_ternary_quantize_tiles(problem));
}

static void run_sum(const bt_kernel *kernel, const void *problem, int64_t group) {
    const bt_ternary_quantize *p = problem;
    const float *w = p->w;
    float lane[16] = {0};
    (void)kernel, (void)group;
    for (int64_t i = 0; i < p->n * p->k; i += 16)
        for (int l = 0; l < 16; l++)
            lane[l] += w[i + l];
    for (int l = 0; l < 16; l++)
        p->scale[0] += lane[l];
}

#define BT_TEXT(name, text, property) text,

/* Every method and rule; group: 0 for the whole matrix. `mean` and `max` cost the same. */
static void measure_quantize(int64_t n, int64_t k, int64_t group, int type) {
    static const char *const methods[] = {BT_METHODS(BT_TEXT)}, *const rules[] = {BT_SCALES(BT_TEXT)};
    static const int scales[] = {BT_SCALE_LS, BT_SCALE_MEAN, BT_SCALE_RMS};
    const size_t size = type == BT_F32 ? sizeof(float) : sizeof(uint16_t);
    void *w = allocate(n * k, size);
    for (int64_t i = 0; i < n * k; i++)
        bt_store(w, type, i, (float)(rand() % 20001 - 10000) / 5000.0f + (float)(rand() % 20001 - 10000) / 5000.0f);
    bt_ternary_quantize p = {.w = w,
                             .packed = allocate(n * k / 4, 1),
                             .scale = allocate(group ? n * k / group : 1, sizeof(float)),
                             .n = n,
                             .k = k,
                             .ldx = k,
                             .ldw = k / 4,
                             .lds = group ? k / group : 0,
                             .group = group ? group : k,
                             .w_type = type,
                             .threshold_factor = 0.5f};
    if (type == BT_F32) {
        printf("%5ld x %5ld  %-34s", (long)n, (long)k, "");
        print_elements("a sum of the weights", "", seconds(run_sum, NULL, &p, 0), n * k, size);
    }
    for (const bt_kernel *kernel = bt_kernels; kernel < bt_kernels + bt_kernel_count; kernel++) {
        if (kernel->op != BT_OP_ternary_quantize || kernel->device != BT_CPU || !bt_kernel_usable(kernel))
            continue;
        for (int i = 0; i < 15; i++) {
            p.method = i / 3, p.rule = scales[i % 3];
            p.workspace = malloc(bt_ternary_quantize_workspace(&p));
            printf("%5ld x %5ld  group %4ld  %-4s %-9s %-4s  ", (long)n, (long)k, (long)group, type_names[type],
                   methods[p.method], rules[p.rule]);
            print_elements("ternary_quantize", kernel->variant, seconds(run_quantize, kernel, &p, group), n * k, size);
            free(p.workspace);
        }
    }
    free(w), free(p.packed), free(p.scale);
}

static void run_pack(const bt_kernel *kernel, const void *problem, int64_t group) {
    (void)group;
    ((bt_ternary_pack_fn *)kernel->run)(problem, 0, ((const bt_ternary_pack *)problem)->n);
}

static void run_unpack(const bt_kernel *kernel, const void *problem, int64_t group) {
    (void)group;
    ((bt_ternary_unpack_fn *)kernel->run)(problem, 0, ((const bt_ternary_unpack *)problem)->n);
}

static void run_check(const bt_kernel *kernel, const void *problem, int64_t group) {
    (void)group;
    ((bt_ternary_check_fn *)kernel->run)(problem, 0, ((const bt_ternary_check *)problem)->n);
}

static void print_bytes(const bt_kernel *kernel, const char *type, int64_t n, int64_t k, int64_t group, double time,
                        double bytes) {
    printf("%5ld x %5ld  group %4ld  %-4s  %-22s %-11s %8.1f us %6.1f GB/s\n", (long)n, (long)k, (long)group, type,
           bt_op_name(kernel->op), kernel->variant, 1e6 * time, 1e-9 * bytes / time);
    fflush(stdout);
}

static void measure_unpack(const bt_kernel *kernel, bt_ternary_unpack u) {
    static const size_t sizes[] = {4, 2, 2, 1};
    const int64_t groups[] = {u.k, 128, 64, 32};
    for (u.y_type = BT_F32; u.y_type <= BT_I8; u.y_type++)
        for (int i = 0; i < (u.y_type == BT_I8 ? 1 : 4); i++) {
            bt_ternary_unpack p = u;
            p.scale = u.y_type == BT_I8 ? NULL : u.scale;
            p.group = groups[i], p.lds = u.k / p.group;
            const double bytes = (double)(u.n * u.k) * (0.25 + (double)sizes[u.y_type]);
            const double time = seconds(run_unpack, kernel, &p, 0);
            print_bytes(kernel, type_names[u.y_type], u.n, u.k, p.group, time, bytes);
        }
}

/* Of trits, and of the bytes that they are packed to. */
static void measure_pack(int64_t n, int64_t k) {
    int8_t *codes = allocate(n * k, 1);
    uint8_t *packed = allocate(n * k / 4, 1);
    float *scale = allocate(n * k / 32, sizeof *scale), *y = allocate(n * k, sizeof *y);
    int64_t *column = allocate(n, sizeof *column);
    for (int64_t i = 0; i < n * k; i++)
        codes[i] = (int8_t)(rand() % 3 - 1);
    for (int64_t i = 0; i < n * k / 32; i++)
        scale[i] = 0.01f;
    memset(y, 0, (size_t)(n * k) * sizeof *y);
    const bt_ternary_pack p = {.codes = codes, .packed = packed, .n = n, .k = k, .ldc = k, .ldw = k / 4};
    const bt_ternary_unpack u = {.w = packed, .scale = scale, .y = y, .n = n, .k = k, .ldw = k / 4, .ldy = k};
    const bt_ternary_check c = {.w = packed, .column = column, .n = n, .k = k, .ldw = k / 4};
    for (const bt_kernel *kernel = bt_kernels; kernel < bt_kernels + bt_kernel_count; kernel++) {
        if (kernel->device != BT_CPU || !bt_kernel_usable(kernel))
            continue;
        if (kernel->op == BT_OP_ternary_pack)
            print_bytes(kernel, "i8", n, k, 0, seconds(run_pack, kernel, &p, 0), 1.25 * (double)(n * k));
        if (kernel->op == BT_OP_ternary_unpack)
            measure_unpack(kernel, u);
        if (kernel->op == BT_OP_ternary_check)
            print_bytes(kernel, "i8", n, k, 0, seconds(run_check, kernel, &c, 0), 0.25 * (double)(n * k));
    }
    free(codes), free(packed), free(scale), free(y), free(column);
}

typedef struct trits_t {
    bt_trit_elementwise each;
    bt_trit_reduce counts;
    bt_bitplane_matmul product;
} trits_t;

enum { TRITS_AT_ONCE = 20 };

static void run_trits(const bt_kernel *kernel, const void *problem, int64_t group) {
    const trits_t *t = problem;
    (void)group;
    for (int i = 0; i < TRITS_AT_ONCE && kernel->op == BT_OP_trit_elementwise; i++)
        ((bt_trit_elementwise_fn *)kernel->run)(&t->each, 0, bt_trit_chunks(t->each.k));
    for (int i = 0; i < TRITS_AT_ONCE && kernel->op == BT_OP_trit_reduce; i++)
        ((bt_trit_reduce_fn *)kernel->run)(&t->counts, 0, bt_reduce_chunks(t->counts.k));
    for (int i = 0; i < TRITS_AT_ONCE && kernel->op == BT_OP_bitplane_matmul; i++)
        ((bt_bitplane_matmul_fn *)kernel->run)(&t->product, 0, bt_tiles(t->product.m, t->product.n));
}

static void print_trits(const bt_kernel *kernel, const trits_t *t, double work) {
    const double time = seconds(run_trits, kernel, t, 0) / TRITS_AT_ONCE;
    printf("%4ld x %4ld x %6ld  %-16s %-12s %7.1f G/s %9.0f ns\n", (long)t->product.m, (long)t->product.n,
           (long)t->each.k, bt_op_name(kernel->op), kernel->variant, 1e-9 * work / time, 1e9 * time);
}

/* Element-wise and dot products of k trits, or with several rows products of m by n. */
static void measure_trits(int64_t m, int64_t n, int64_t k) {
    const int64_t blocks = bt_div_up(k, BT_PLANE_TRITS), ld = blocks * BT_PLANE_BLOCK_BYTES;
    uint8_t *a = allocate(m * ld, 1), *b = allocate(n * ld, 1), *y = allocate(m * ld, 1);
    int64_t *counts = allocate(2 * bt_reduce_chunks(k), sizeof *counts);
    int32_t *product = allocate(m * n, sizeof *product);
    trits_t t = {{.a = a, .b = b, .y = y, .n = 1, .k = k, .function = BT_TRIT_mul},
                 {.a = a, .b = b, .counts = counts, .n = 1, .k = k},
                 {.a = a, .b = b, .y = product, .m = m, .n = n, .blocks = blocks, .lda = ld, .ldb = ld, .ldy = n}};
    memset(a, 0x19, (size_t)(m * ld)), memset(b, 0x61, (size_t)(n * ld)), memset(y, 0, (size_t)(m * ld));
    for (const bt_kernel *kernel = bt_kernels; kernel < bt_kernels + bt_kernel_count; kernel++) {
        if (kernel->device != BT_CPU || !bt_kernel_usable(kernel))
            continue;
        if (n > 1 ? kernel->op == BT_OP_bitplane_matmul
                  : kernel->op == BT_OP_trit_elementwise || kernel->op == BT_OP_trit_reduce)
            print_trits(kernel, &t, n > 1 ? 2.0 * (double)(m * n * k) : (double)k);
    }
    free(a), free(b), free(y), free(counts), free(product);
}

static void measure_products(void) {
    measure(1, 2560, 2560);
    measure(8, 2560, 2560);
    measure(32, 2560, 2560);
    measure(1, 4096, 4096);
    measure_prepares(1, 2560);
    measure_prepares(1, 4096);
    measure_prepares(512, 2560);
}

static void measure_quantizes(void) {
    for (int type = BT_F32; type <= BT_BF16; type++)
        measure_quantize(256, 2560, 128, type);
    measure_quantize(4096, 4096, 0, BT_F32);
    measure_quantize(4096, 4096, 4096, BT_F32);
    measure_quantize(4096, 4096, 128, BT_F32);
}

static int wanted(int argc, char **argv, const char *part) {
    return argc < 2 || strcmp(argv[1], part) == 0;
}

int main(int argc, char **argv) {
    if (wanted(argc, argv, "products"))
        measure_products();
    if (wanted(argc, argv, "quantize"))
        measure_quantizes();
    if (wanted(argc, argv, "pack")) {
        measure_pack(256, 2560);
        measure_pack(8192, 8192);
    }
    if (wanted(argc, argv, "trits")) {
        measure_trits(1, 1, 10000);
        measure_trits(1, 1, 655360);
        measure_trits(1, 2560, 2560);
        measure_trits(8, 2560, 2560);
        measure_trits(32, 2560, 2560);
        measure_trits(1024, 1024, 1024);
    }
    return 0;
}
