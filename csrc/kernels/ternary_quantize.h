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
 * Scale: ls = mean of the kept a, mean = max(mean a, 1e-5), max = max a. A group that keeps nothing has codes 0 and,
 * with ls, scale 1e-5; so has an all-zero group with any rule. A non-finite group has codes 0 and scale NaN. */
#ifndef BT_TERNARY_QUANTIZE_H
#define BT_TERNARY_QUANTIZE_H
#include "bt_common.h"

#include <math.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { BT_METHOD_MAX, BT_METHOD_TWN, BT_METHOD_ABSMEAN, BT_METHOD_ABSMEDIAN, BT_METHOD_OPTIMAL, BT_METHOD_NM34 };
enum { BT_SCALE_LS, BT_SCALE_MEAN, BT_SCALE_MAX };
#define BT_SCALE_EPS 1e-5f

typedef struct bt_ternary_quantize {
    const void *w;   /* n rows of k, ldx elements apart, of type w_type */
    uint8_t *packed; /* n rows of ceil(k/4), ldw bytes apart */
    float *scale;    /* [1], [n] or [n][k / group] */
    int64_t n, k, ldx, ldw, lds, group;
    int w_type, method, rule;
    float threshold_factor; /* not negative */
    void *workspace;        /* bt_ternary_quantize_workspace() bytes, another piece for each concurrent call */
    void *stream;
} bt_ternary_quantize;

/* A tile is a row; with lds = 0 there is one tile, the whole matrix. */
typedef bt_status bt_ternary_quantize_fn(const bt_ternary_quantize *p, int64_t tile_begin, int64_t tile_end);

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

/* Bytes of scratch on the CPU, for each concurrent call: the methods that sort hold two copies of one group. */
static inline size_t bt_ternary_quantize_workspace(const bt_ternary_quantize *p) {
    const int sorts = p->method == BT_METHOD_ABSMEDIAN || p->method == BT_METHOD_OPTIMAL;
    return sorts ? 2 * sizeof(float) * (size_t)bt_ternary_quantize_group_size(p) : 0;
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
    if (p->method != BT_METHOD_ABSMEDIAN && p->method != BT_METHOD_OPTIMAL)
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
