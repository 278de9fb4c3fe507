/* ternary_quantize: floating weights to packed codes and a scale, in one pass over each scale group.
 *
 * A group is the whole matrix (lds = 0), a row (lds = 1, group = k) or `group` columns of a row (lds = k / group).
 * With a = |w| in fp32, sums in fp64 rounded once to fp32, f = threshold_factor in fp32 and fl() an fp32 rounding:
 *   max        keep a > fl(f * max a)
 *   twn        keep a > fl(f * mean a)
 *   absmean    keep fl(a * fl(1 / max(mean a, 1e-5))) > f         f = 0.5 is round-half-to-even
 *   absmedian  the same with the median (of an even count, the lower)
 *   optimal    keep the k largest that maximise (their sum)^2 / k; f is not used
 *   nm34       keep all but the smallest of the four columns of a byte (of equal ones the first goes), and no zero;
 *              f is not used
 * Scale:
 *   ls         mean of the kept a
 *   mean       max(mean a, 1e-5)
 *   max        max a
 *   rms        min(sqrt(s / kept), largest), s the sum of all a^2 in fp64, where a square is exact and none is Inf,
 *              division and root in fp64, one rounding to fp32 at the end; largest is the largest finite number of the
 *              type of w. Below it codes * scale has the norm of w. Nothing becomes Inf, and code * scale is finite in
 *              the type of w.
 * A group that keeps nothing has codes 0 and, with ls and rms, scale 1e-5; so has an all-zero group with any rule. A
 * non-finite group has codes 0 and scale NaN.
 *
 * A method that goes by what is measured here, or a scale rule that goes by these sums, is added in this header, in
 * bittorch/ops/reference.py and in bittorch/quant/ternary.py. */
#ifndef BT_TERNARY_QUANTIZE_H
#define BT_TERNARY_QUANTIZE_H
#include "bt_common.h"

#include <math.h>

#ifdef __cplusplus
extern "C" {
#endif

/* What a method goes by: of |w|, the largest, mean, lower median, or the number below the smallest that is kept. */
typedef enum bt_by { BT_BY_NOTHING, BT_BY_MAX, BT_BY_MEAN, BT_BY_MEDIAN, BT_BY_OPTIMUM } bt_by;

/* What is added up for a scale while codes are written: nothing, the kept |w|, or the squares of all w. */
typedef enum bt_adds { BT_ADDS_NOTHING, BT_ADDS_KEPT, BT_ADDS_SQUARES } bt_adds;

/* name, what users call it, what it goes by */
#define BT_METHODS(X)                                                                                                  \
    X(MAX, "max", BT_BY_MAX)                                                                                           \
    X(TWN, "twn", BT_BY_MEAN)                                                                                          \
    X(ABSMEAN, "absmean", BT_BY_MEAN)                                                                                  \
    X(ABSMEDIAN, "absmedian", BT_BY_MEDIAN)                                                                            \
    X(OPTIMAL, "optimal", BT_BY_OPTIMUM)                                                                               \
    X(NM34, "nm34", BT_BY_NOTHING)

/* name, what users call it, what is added up for it */
#define BT_SCALES(X)                                                                                                   \
    X(LS, "ls", BT_ADDS_KEPT)                                                                                          \
    X(MEAN, "mean", BT_ADDS_NOTHING)                                                                                   \
    X(MAX, "max", BT_ADDS_NOTHING)                                                                                     \
    X(RMS, "rms", BT_ADDS_SQUARES)

#define BT_METHOD_ENUM(name, text, by) BT_METHOD_##name,
#define BT_SCALE_ENUM(name, text, adds) BT_SCALE_##name,
#define BT_COUNT_ROW(name, text, property) +1
typedef enum bt_method { BT_METHODS(BT_METHOD_ENUM) } bt_method;
typedef enum bt_scale { BT_SCALES(BT_SCALE_ENUM) } bt_scale;
enum { BT_METHOD_COUNT = BT_METHODS(BT_COUNT_ROW), BT_SCALE_COUNT = BT_SCALES(BT_COUNT_ROW) };
#undef BT_METHOD_ENUM
#undef BT_SCALE_ENUM
#undef BT_COUNT_ROW
#define BT_SCALE_EPS 1e-5f

typedef struct bt_ternary_quantize {
    const void *w;   /* n rows of k, ldx elements apart, of type w_type */
    uint8_t *packed; /* n rows of ceil(k/4), ldw bytes apart */
    float *scale;    /* [1], [n] or [n][k / group] */
    int64_t n, k, ldx, ldw, lds, group;
    int w_type, method, rule; /* bt_method, bt_scale */
    float threshold_factor;   /* not negative */
    void *workspace;          /* bt_ternary_quantize_workspace() bytes, another piece for each concurrent call */
    void *stream;
} bt_ternary_quantize;

/* A tile is a row; with lds = 0 there is one tile, the whole matrix. */
typedef bt_status bt_ternary_quantize_fn(const bt_ternary_quantize *p, int64_t tile_begin, int64_t tile_end);

/* keep fl(|w| * multiplier) > threshold */
typedef struct bt_keep_rule {
    float multiplier, threshold;
} bt_keep_rule;

#define BT_IF_METHOD(name, text, by) method == BT_METHOD_##name ? by:
#define BT_IF_SCALE(name, text, adds) rule == BT_SCALE_##name ? adds:
BT_INLINE bt_by bt_method_by(int method) {
    return BT_METHODS(BT_IF_METHOD) BT_BY_NOTHING;
}

BT_INLINE bt_adds bt_scale_adds(int rule) {
    return BT_SCALES(BT_IF_SCALE) BT_ADDS_NOTHING;
}
#undef BT_IF_METHOD
#undef BT_IF_SCALE

/* What a mean is divided by, and what the rule `mean` stores. */
BT_INLINE float bt_at_least_eps(float mean) {
    return mean > BT_SCALE_EPS ? mean : BT_SCALE_EPS;
}

/* The rule of a method, `measured` being what it goes by. */
BT_INLINE bt_keep_rule bt_keep_rule_of(int method, float threshold_factor, float measured) {
    bt_keep_rule rule = {1.0f, 0.0f};
    switch ((bt_method)method) {
    case BT_METHOD_MAX:
    case BT_METHOD_TWN:
        rule.threshold = threshold_factor * measured;
        break;
    case BT_METHOD_ABSMEAN:
    case BT_METHOD_ABSMEDIAN:
        rule.multiplier = 1.0f / bt_at_least_eps(measured);
        rule.threshold = threshold_factor;
        break;
    case BT_METHOD_OPTIMAL:
        rule.threshold = measured;
        break;
    case BT_METHOD_NM34: /* all that bt_drop_smallest() leaves */
        break;
    }
    return rule;
}

/* The largest finite number of a floating type. */
BT_INLINE double bt_largest_of(int type) {
    return type == BT_F16 ? 65504.0 : type == BT_BF16 ? 0x1.fep127 : 0x1.fffffep127;
}

/* The scale of a finite group that is not all zero; `sum` is what bt_scale_adds() says, `kept` how many codes are not
 * 0. */
BT_INLINE float bt_scale_of(const bt_ternary_quantize *p, float absmax, float mean, double sum, int64_t kept) {
    switch ((bt_scale)p->rule) {
    case BT_SCALE_LS:
        return kept > 0 ? (float)(sum / (double)kept) : BT_SCALE_EPS;
    case BT_SCALE_MEAN:
        return bt_at_least_eps(mean);
    case BT_SCALE_MAX:
        return absmax;
    case BT_SCALE_RMS: {
        const double largest = bt_largest_of(p->w_type), rms = kept > 0 ? sqrt(sum / (double)kept) : BT_SCALE_EPS;
        return (float)(rms < largest ? rms : largest);
    }
    }
    return BT_SCALE_EPS;
}

/* Zeroes what nm34 drops of the four weights of a byte. Of fewer the missing ones, zeros, are the smallest. */
BT_INLINE void bt_drop_smallest(float w[4]) {
    int smallest = 0;
    float least = fabsf(w[0]);
    for (int i = 1; i < 4; i++)
        if (fabsf(w[i]) < least) {
            smallest = i;
            least = fabsf(w[i]);
        }
    for (int i = 0; i < 4; i++) /* no w[smallest]: an array with such an index leaves the registers of a GPU */
        w[i] = i == smallest ? 0.0f : w[i];
}

static inline int64_t bt_ternary_quantize_tiles(const bt_ternary_quantize *p) {
    return p->lds == 0 ? 1 : p->n;
}

/* Elements that share a scale. */
static inline int64_t bt_ternary_quantize_group_size(const bt_ternary_quantize *p) {
    return p->lds == 0 ? p->n * p->k : p->group;
}

static inline int bt_ternary_quantize_sorts(const bt_ternary_quantize *p) {
    return bt_method_by(p->method) == BT_BY_MEDIAN || bt_method_by(p->method) == BT_BY_OPTIMUM;
}

/* Bytes of scratch on the CPU, for each concurrent call: the methods that sort hold two copies of one group. */
static inline size_t bt_ternary_quantize_workspace(const bt_ternary_quantize *p) {
    return bt_ternary_quantize_sorts(p) ? 2 * sizeof(float) * (size_t)bt_ternary_quantize_group_size(p) : 0;
}

/* On CUDA a tensor is cut into slices, whose partial sums are added in order: the cut depends on the problem alone. */
enum { BT_QUANTIZE_SLICE = 4096, BT_QUANTIZE_MAX_SLICES = 512 };

/* Padded keys that are sorted at once on CUDA; one larger group is sorted alone. */
#if !defined(BT_QUANTIZE_KEYS)
#define BT_QUANTIZE_KEYS ((int64_t)1 << 24)
#endif

static inline int64_t bt_ternary_quantize_groups(const bt_ternary_quantize *p) {
    return p->lds == 0 ? 1 : p->n * p->lds;
}

static inline int64_t bt_ternary_quantize_slices(const bt_ternary_quantize *p) {
    const int64_t wanted = p->lds == 0 ? bt_div_up(p->n * p->k, BT_QUANTIZE_SLICE) : 1;
    return wanted < 1 ? 1 : wanted < BT_QUANTIZE_MAX_SLICES ? wanted : (int64_t)BT_QUANTIZE_MAX_SLICES;
}

/* Keys of a group, padded to a power of two; 0 for the methods that do not sort. */
static inline int64_t bt_ternary_quantize_padded(const bt_ternary_quantize *p) {
    int64_t padded = 1;
    if (!bt_ternary_quantize_sorts(p))
        return 0;
    while (padded < bt_ternary_quantize_group_size(p))
        padded *= 2;
    return padded;
}

/* Groups that are sorted at once. */
static inline int64_t bt_ternary_quantize_batch(const bt_ternary_quantize *p) {
    const int64_t padded = bt_ternary_quantize_padded(p), groups = bt_ternary_quantize_groups(p);
    const int64_t batch = padded > BT_QUANTIZE_KEYS || padded == 0 ? 1 : BT_QUANTIZE_KEYS / padded;
    return batch < groups ? batch : groups;
}

/* Bytes of device scratch on CUDA, aligned to 8: 48 a slice for partial sums, 16 a group for its rule, 4 a key. A scale
 * a row or group needs none, unless weights are sorted. */
static inline size_t bt_ternary_quantize_cuda_workspace(const bt_ternary_quantize *p) {
    const int64_t groups = bt_ternary_quantize_groups(p), slices = bt_ternary_quantize_slices(p);
    const int64_t keys = bt_ternary_quantize_batch(p) * bt_ternary_quantize_padded(p);
    if (keys == 0 && p->lds > 0)
        return 0;
    return (size_t)(groups * (48 * slices + 16) + keys * 4);
}

#define BT_TERNARY_QUANTIZE(X)                                                                                         \
    BT_ON_CUDA(X(ternary_quantize, BT_GPU, BT_FLOATS, cuda_baseline, 0))                                               \
    BT_ON_X86(X(ternary_quantize, BT_CPU, BT_FLOATS, avx512, BT_CPU_AVX512))                                           \
    BT_ON_X86(X(ternary_quantize, BT_CPU, BT_FLOATS, avx2, BT_CPU_AVX2))                                               \
    BT_ON_ARM(X(ternary_quantize, BT_CPU, BT_FLOATS, neon, BT_CPU_NEON))                                               \
    X(ternary_quantize, BT_CPU, BT_FLOATS, scalar, 0)

BT_TERNARY_QUANTIZE(BT_DECLARE_KERNEL)

#ifdef __cplusplus
}
#endif
#endif
