/* What this machine can do at most, as one JSON object: products a second out of registers, and bytes a second read.
 *
 *   cc -O2 -pthread cpu_limits.c -o cpu_limits && ./cpu_limits --threads 1
 *
 * Gop/s count 2 operations for each multiply-add of a weight with an activation, as Gop/s = 2 m n k / time does for a
 * layer. An instruction is run on independent accumulators and constant operands: nothing is loaded, decoded or
 * widened, so a kernel can come close to these figures and not pass them. A figure is the best of REPEATS runs of some
 * milliseconds; with several threads all of them run at once and the figure is their sum over the time of the slowest.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#include <sys/auxv.h>
#endif

enum { REPEATS = 25, MAX_THREADS = 256, ACCUMULATORS = 12 };
static const double RUN_SECONDS = 4e-3;

typedef void loop_fn(int64_t count, const void *data);

/* A loop over ACCUMULATORS independent ones: more than latency times throughput of any CPU so far, and they fit into 16
 * registers beside the operands. Inline assembly, because the products of constants would be moved out of the loop. */
#define UNROLLED _Pragma("GCC unroll 12") for (int j = 0; j < ACCUMULATORS; j++)
#define DEFINE_PEAK(name, isa, vector, ...)                                                                            \
    __attribute__((target(isa), noinline)) static void name(int64_t count, const void *data) {                         \
        vector acc[ACCUMULATORS], a, b, t;                                                                             \
        memcpy(&a, data, sizeof a);                                                                                    \
        memcpy(&b, data, sizeof b);                                                                                    \
        t = a;                                                                                                         \
        __asm__("" : "+" REGISTER(a), "+" REGISTER(b), "+" REGISTER(t)); /* two registers, as a kernel has */          \
        UNROLLED acc[j] = t;                                                                                           \
        for (int64_t i = 0; i < count; i++)                                                                            \
            UNROLLED __asm__ volatile(__VA_ARGS__);                                                                    \
        UNROLLED __asm__ volatile("" : : REGISTER(acc[j]));                                                            \
    }

#if defined(__x86_64__)
#define REGISTER "v"
#define MULTIPLY_ADD(op) op " %2, %1, %0" : "+v"(acc[j]) : "v"(a), "v"(b)

/* clang-format off */
DEFINE_PEAK(dpbusd_512, "avx512f,avx512vl,avx512vnni", __m512i, MULTIPLY_ADD("vpdpbusd"))
DEFINE_PEAK(dpbusd_256, "avx512f,avx512vl,avx512vnni", __m256i, MULTIPLY_ADD("vpdpbusd"))
DEFINE_PEAK(maddubs_256, "avx2", __m256i,
            "vpmaddubsw %3, %2, %1\n\tvpaddw %1, %0, %0" : "+x"(acc[j]), "=&x"(t) : "x"(a), "x"(b))
DEFINE_PEAK(fma_256, "avx2,fma", __m256, "vfmadd231ps %2, %1, %0" : "+x"(acc[j]) : "x"(a), "x"(b))
DEFINE_PEAK(fma_512, "avx512f", __m512, MULTIPLY_ADD("vfmadd231ps"))
DEFINE_PEAK(dpbf16_512, "avx512f,avx512bf16", __m512, MULTIPLY_ADD("vdpbf16ps"))
#if defined(__clang__) || __GNUC__ >= 12
#define HAS_AVXVNNI 1
DEFINE_PEAK(dpbusd_vex, "avx2,avxvnni", __m256i, "%{vex%} vpdpbusd %2, %1, %0" : "+x"(acc[j]) : "x"(a), "x"(b))
#endif
/* clang-format on */

#elif defined(__aarch64__)
#define REGISTER "w"

/* clang-format off */
DEFINE_PEAK(sdot_128, "arch=armv8.2-a+dotprod", int8x16_t, "sdot %0.4s, %1.16b, %2.16b" : "+w"(acc[j]) : "w"(a), "w"(b))
DEFINE_PEAK(smmla_128, "arch=armv8.2-a+i8mm", int8x16_t, "smmla %0.4s, %1.16b, %2.16b" : "+w"(acc[j]) : "w"(a), "w"(b))
DEFINE_PEAK(smlal_128, "arch=armv8-a", int8x16_t, "smlal %0.8h, %1.8b, %2.8b" : "+w"(acc[j]) : "w"(a), "w"(b))
DEFINE_PEAK(fmla_128, "arch=armv8-a", float32x4_t, "fmla %0.4s, %1.4s, %2.4s" : "+w"(acc[j]) : "w"(a), "w"(b))
/* clang-format on */
#endif

typedef struct peak_t {
    const char *name, *counted;
    int supported, multiply_adds; /* of one instruction, or of one pair */
    loop_fn *run;
    const char *data; /* four bytes, repeated */
} peak_t;

#define INT8_ONES "\1\1\1\1"
#define FP32_ONES "\0\0\x80\x3f"
#define BF16_ONES "\x80\x3f\x80\x3f"

static int list_peaks(peak_t peaks[16]) {
    int n = 0;
#if defined(__x86_64__)
    __builtin_cpu_init();
    const int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const int avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl");
    const int vnni = avx512 && __builtin_cpu_supports("avx512vnni");
    const int bf16 = avx512 && __builtin_cpu_supports("avx512bf16");
    peaks[n++] = (peak_t){"vpdpbusd_512", "vpdpbusd zmm: 64 multiply-adds", vnni, 64, dpbusd_512, INT8_ONES};
    peaks[n++] = (peak_t){"vpdpbusd_256", "vpdpbusd ymm: 32 multiply-adds", vnni, 32, dpbusd_256, INT8_ONES};
#if defined(HAS_AVXVNNI)
    const int avxvnni = avx2 && __builtin_cpu_supports("avxvnni");
    peaks[n++] = (peak_t){"vpdpbusd_vex_256", "vpdpbusd ymm of AVX-VNNI: 32", avxvnni, 32, dpbusd_vex, INT8_ONES};
#endif
    peaks[n++] = (peak_t){"vpmaddubsw_256",
                          "vpmaddubsw and vpaddw ymm: 32 multiply-adds a pair, widening left out",
                          avx2,
                          32,
                          maddubs_256,
                          INT8_ONES};
    peaks[n++] = (peak_t){"fma_fp32_256", "vfmadd231ps ymm: 8 multiply-adds", avx2, 8, fma_256, FP32_ONES};
    peaks[n++] = (peak_t){"fma_fp32_512", "vfmadd231ps zmm: 16 multiply-adds", avx512, 16, fma_512, FP32_ONES};
    peaks[n++] = (peak_t){"vdpbf16ps_512", "vdpbf16ps zmm: 32 multiply-adds", bf16, 32, dpbf16_512, BF16_ONES};
#elif defined(__aarch64__)
    enum { ASIMDDP = 1 << 20, I8MM = 1 << 13 }; /* HWCAP_ASIMDDP, HWCAP2_I8MM; older C library headers lack the names */
    const int dot = !!(getauxval(AT_HWCAP) & ASIMDDP), i8mm = !!(getauxval(AT_HWCAP2) & I8MM);
    peaks[n++] = (peak_t){"sdot_128", "sdot: 16 multiply-adds", dot, 16, sdot_128, INT8_ONES};
    peaks[n++] = (peak_t){"smmla_128", "smmla: 32 multiply-adds", i8mm, 32, smmla_128, INT8_ONES};
    peaks[n++] = (peak_t){"smlal_128", "smlal: 8 multiply-adds, widening left out", 1, 8, smlal_128, INT8_ONES};
    peaks[n++] = (peak_t){"fma_fp32_128", "fmla: 4 multiply-adds", 1, 4, fmla_128, FP32_ONES};
#else
    (void)peaks;
#endif
    return n;
}

/* Sums of 64-byte lines, by whatever vectors the target has; eight sums, so that loads do not wait for additions. */
__attribute__((always_inline)) static inline void read_lines(int64_t count, const void *data, int64_t ahead) {
    typedef uint64_t line_t __attribute__((vector_size(64)));
    const line_t *line = data;
    line_t sum[8] = {{0}};
    for (int64_t i = 0; i < count; i += 8) {
#pragma GCC unroll 8
        for (int j = 0; j < 8; j++) {
            if (ahead)
                __builtin_prefetch((const char *)(line + i + j) + ahead);
            sum[j] |= line[i + j];
        }
    }
    for (int j = 1; j < 8; j++)
        sum[0] |= sum[j];
    volatile uint64_t sink = sum[0][0] | sum[0][1] | sum[0][2] | sum[0][3] | sum[0][4] | sum[0][5] | sum[0][6];
    (void)sink;
}

enum { PREFETCH_AHEAD = 4096 };

/* Each with and without prefetches: which of them is faster differs by CPU and by level, and the limit is the faster.
 */
#define DEFINE_READ(name, attribute)                                                                                   \
    attribute static void name(int64_t count, const void *data) {                                                      \
        read_lines(count, data, 0);                                                                                    \
    }                                                                                                                  \
    attribute static void name##_prefetch(int64_t count, const void *data) {                                           \
        read_lines(count, data, PREFETCH_AHEAD);                                                                       \
    }
DEFINE_READ(read_plain, __attribute__((noinline)))
#if defined(__x86_64__)
DEFINE_READ(read_avx2, __attribute__((target("avx2"), noinline)))
DEFINE_READ(read_avx512, __attribute__((target("avx512f"), noinline)))
#endif

static void choose_read(loop_fn *read[2]) {
    read[0] = read_plain, read[1] = read_plain_prefetch;
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f"))
        read[0] = read_avx512, read[1] = read_avx512_prefetch;
    else if (__builtin_cpu_supports("avx2"))
        read[0] = read_avx2, read[1] = read_avx2_prefetch;
#endif
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

typedef struct job_t {
    loop_fn *run;
    int64_t count, passes; /* run(count, data) `passes` times */
    const char *data;
    pthread_barrier_t *barrier;
    double begin[REPEATS], end[REPEATS];
} job_t;

static void *work(void *argument) {
    job_t *job = argument;
    for (int r = 0; r < REPEATS; r++) {
        pthread_barrier_wait(job->barrier);
        job->begin[r] = now();
        for (int64_t pass = 0; pass < job->passes; pass++)
            job->run(job->count, job->data);
        job->end[r] = now();
    }
    return NULL;
}

/* Seconds of the best repetition in which `threads` threads, each with its own data, run at once. */
static double best_seconds(int threads, loop_fn *run, int64_t count, int64_t passes, char *const data[]) {
    static job_t jobs[MAX_THREADS];
    pthread_t ids[MAX_THREADS];
    pthread_barrier_t barrier;
    pthread_barrier_init(&barrier, NULL, (unsigned)threads);
    for (int t = 0; t < threads; t++) {
        jobs[t] = (job_t){.run = run, .count = count, .passes = passes, .data = data[t], .barrier = &barrier};
        if (t && pthread_create(&ids[t], NULL, work, &jobs[t])) {
            fprintf(stderr, "cpu_limits: cannot start thread %d of %d; use a smaller --threads\n", t + 1, threads);
            exit(1);
        }
    }
    work(&jobs[0]);
    for (int t = 1; t < threads; t++)
        pthread_join(ids[t], NULL);
    pthread_barrier_destroy(&barrier);
    double best = 1e9;
    for (int r = 0; r < REPEATS; r++) {
        double begin = jobs[0].begin[r], end = jobs[0].end[r];
        for (int t = 1; t < threads; t++) {
            begin = jobs[t].begin[r] < begin ? jobs[t].begin[r] : begin;
            end = jobs[t].end[r] > end ? jobs[t].end[r] : end;
        }
        best = end - begin < best ? end - begin : best;
    }
    return best;
}

/* How many passes take about RUN_SECONDS on one thread. */
static int64_t passes_for(loop_fn *run, int64_t count, const char *data) {
    for (int64_t passes = 1;; passes *= 2) {
        const double start = now();
        for (int64_t pass = 0; pass < passes; pass++)
            run(count, data);
        const double seconds = now() - start;
        if (seconds > RUN_SECONDS / 4)
            return (int64_t)(1 + (double)passes * RUN_SECONDS / seconds);
    }
}

static double peak_gops(const peak_t *peak, int threads) {
    _Alignas(64) static char ones[64];
    char *data[MAX_THREADS];
    for (int i = 0; i < 64; i++)
        ones[i] = peak->data[i % 4];
    for (int t = 0; t < threads; t++)
        data[t] = ones;
    const int64_t count = 1000, passes = passes_for(peak->run, count, ones);
    const double products = (double)peak->multiply_adds * ACCUMULATORS * (double)count * (double)passes * threads;
    return 2e-9 * products / best_seconds(threads, peak->run, count, passes, data);
}

/* GB/s of all threads together; each reads `bytes` of its own, a multiple of 512, again and again. */
static double read_gbps(int64_t bytes, int threads, int huge_pages) {
    enum { HUGE_PAGE = 2 << 20 };
    const size_t size = ((size_t)bytes + PREFETCH_AHEAD + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
    char *data[MAX_THREADS];
    for (int t = 0; t < threads; t++) {
        data[t] = aligned_alloc(HUGE_PAGE, size);
        if (!data[t]) {
            fprintf(stderr, "cpu_limits: no memory for %zu bytes a thread; use a smaller --threads\n", size);
            exit(1);
        }
#if defined(MADV_HUGEPAGE)
        madvise(data[t], size, huge_pages ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
#endif
        (void)huge_pages;
        memset(data[t], 1, size);
    }
    loop_fn *read[2];
    choose_read(read);
    double best = 0;
    for (int i = 0; i < 2; i++) {
        const int64_t passes = passes_for(read[i], bytes / 64, data[0]);
        const double seconds = best_seconds(threads, read[i], bytes / 64, passes, data);
        const double gbps = 1e-9 * (double)bytes * (double)passes * threads / seconds;
        best = gbps > best ? gbps : best;
    }
    for (int t = 0; t < threads; t++)
        free(data[t]);
    return best;
}

/* Bytes of the cache of `level` that this core can use, or `otherwise` where nobody says. Linux is asked before the C
 * library, which on some virtual machines counts the caches of CPUs that are not there. */
static int64_t cache_bytes(int level, int64_t otherwise) {
    char path[96], unit = 0;
    long size = 0;
    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu0/cache/index%d/size", level);
    FILE *file = fopen(path, "r");
    if (file) {
        if (fscanf(file, "%ld%c", &size, &unit) < 1)
            size = 0;
        fclose(file);
    }
    if (size > 0)
        return (int64_t)size << (unit == 'K' ? 10 : unit == 'M' ? 20 : 0);
#if defined(_SC_LEVEL3_CACHE_SIZE)
    size = sysconf(level == 2 ? _SC_LEVEL2_CACHE_SIZE : _SC_LEVEL3_CACHE_SIZE);
#endif
    return size > 0 ? size : otherwise;
}

int main(int argc, char **argv) {
    const int threads = argc == 3 && strcmp(argv[1], "--threads") == 0 ? atoi(argv[2]) : argc == 1 ? 1 : 0;
    if (threads < 1 || threads > MAX_THREADS) {
        fprintf(stderr, "usage: cpu_limits [--threads N]    N in 1..%d, default 1\n", MAX_THREADS);
        return 2;
    }
    peak_t peaks[16];
    const int count = list_peaks(peaks);
    printf("{\"threads\": %d,\n \"peak_gops\": {", threads);
    const char *comma = "";
    for (int i = 0; i < count; i++)
        if (peaks[i].supported) {
            printf("%s\"%s\": %.1f", comma, peaks[i].name, peak_gops(&peaks[i], threads));
            comma = ", ";
        }
    printf("},\n \"counted\": {");
    comma = "";
    for (int i = 0; i < count; i++)
        if (peaks[i].supported) {
            printf("%s\"%s\": \"%s\"", comma, peaks[i].name, peaks[i].counted);
            comma = ", ";
        }
    const int64_t l2 = cache_bytes(2, 512 << 10), l3 = cache_bytes(3, 32 << 20);
    const int64_t past = 4 * l3 > 128 << 20 ? 4 * l3 : 128 << 20;
    /* Half of L2, an eighth of L3, which other cores use too, and four times L3: all threads share it and the memory.
     * Past the caches, small pages are what most allocators give, and their page table walks cost bandwidth. */
    const struct {
        const char *name;
        int64_t bytes;
        int huge_pages;
    } levels[] = {{"l2", l2 / 2 / 512 * 512, 1},
                  {"l3", (l3 / 8 > 2 * l2 ? l3 / 8 : 2 * l2) / 512 * 512, 1},
                  {"cold", past / 512 * 512, 0},
                  {"cold_huge_pages", past / 512 * 512, 1}};
    enum { LEVELS = sizeof levels / sizeof *levels };
    printf("},\n \"read_bytes\": {");
    for (int i = 0; i < LEVELS; i++)
        printf("%s\"%s\": %lld", i ? ", " : "", levels[i].name, (long long)levels[i].bytes);
    printf("},\n \"read_gbps\": {");
    for (int i = 0; i < LEVELS; i++)
        printf("%s\"%s\": %.1f", i ? ", " : "", levels[i].name,
               read_gbps(levels[i].bytes, threads, levels[i].huge_pages));
    printf("}, \"cache_bytes\": {\"l2\": %lld, \"l3\": %lld}}\n", (long long)l2, (long long)l3);
    return 0;
}
