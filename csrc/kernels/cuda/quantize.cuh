/* What the kernels of ternary_quantize share: see ternary_quantize.cu. */
#ifndef BT_CUDA_QUANTIZE_CUH
#define BT_CUDA_QUANTIZE_CUH

#include "../cpu/half.h"
#include "../ternary_quantize.h"
#include "reduce.cuh"

#include <math.h>

static const uint32_t INFINITE = 0x7f800000u, QUIET_NAN = 0x7fc00000u, PADDING = 0xffffffffu;

/* Of what is measured: sum and absmax of |w|, as bits. Of what is encoded: the sum by bt_scale_adds(), and how many
 * are kept. */
typedef struct partial_t {
    double sum;
    int64_t number;
    uint32_t absmax;
} partial_t;

/* A `keep` of {0, 0} keeps nothing, whatever w is. */
typedef struct rule_t {
    bt_keep_rule keep;
    uint32_t absmax;
    float mean;
} rule_t;

static_assert(sizeof(partial_t) == 24 && sizeof(rule_t) == 16, "bt_ternary_quantize_cuda_workspace counts on it");

/* What the kernels share besides the params: counts, and the three parts of the workspace. */
typedef struct plan_t {
    int64_t groups, slices, padded, batch, count;
    bool aligned; /* four weights of a row are one load */
    partial_t *measured, *kept;
    rule_t *rule;
    uint32_t *keys;
} plan_t;

/* Columns [column, column + columns) of `rows` rows: what shares one scale. */
typedef struct group_t {
    int64_t row, rows, column, columns;
} group_t;

static __device__ group_t group_at(const bt_ternary_quantize &p, int64_t g) {
    if (p.lds == 0)
        return {0, p.n, 0, p.k};
    return {g / p.lds, 1, g % p.lds * p.group, p.group};
}

#endif
