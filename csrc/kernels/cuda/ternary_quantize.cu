/* Floating weights to packed codes and scales, by the rules of the header.
 *
 *   measure -> rules -> [ fill -> sort -> median or optimum ] -> encode -> finish
 *
 * measure and encode: a block takes a slice of a group (a group is one slice, except that a whole tensor has several),
 * a thread the four weights of a byte at a time, and the block's fp64 sums are a tree of fixed shape. rules and finish:
 * a thread takes a group and adds its slices in order. Methods that sort keep the bits of |w|, which have the order of
 * the magnitudes, in rows padded to a power of two, and sort all rows at once by a bitonic network.
 * The workspace holds the partials of all slices, the rules of all groups, the keys of one batch of groups. */
#include "../cpu/half.h"
#include "../ternary_quantize.h"
#include "reduce.cuh"

#include <math.h>

static const uint32_t INFINITE = 0x7f800000u, QUIET_NAN = 0x7fc00000u, PADDING = 0xffffffffu;

/* Of measure: sum and absmax of |w|, as bits. Of encode: sum and number of what is kept. */
typedef struct partial_t {
    double sum;
    int64_t number;
    uint32_t absmax;
} partial_t;

/* keep fl(|w| * multiplier) > threshold; {0, 0} keeps nothing, whatever w is. */
typedef struct rule_t {
    float multiplier, threshold;
    uint32_t absmax;
    float mean;
} rule_t;

/* Magnitudes `cut` and above give the gain (their sum)^2 / (their number). */
typedef struct optimum_t {
    double gain;
    uint32_t cut;
} optimum_t;

static_assert(sizeof(partial_t) == 24 && sizeof(rule_t) == 16, "bt_ternary_quantize_cuda_workspace counts on it");

/* What the kernels share besides the params: counts, and the three parts of the workspace. */
typedef struct plan_t {
    int64_t groups, slices, padded, batch, count;
    partial_t *partial;
    rule_t *rule;
    uint32_t *keys;
} plan_t;

/* Columns [column, column + columns) of `rows` rows: what shares one scale. */
typedef struct group_t {
    int64_t row, rows, column, columns;
} group_t;

/* The weights of one byte of the packed rows. */
typedef struct four_t {
    float w[4];
    int count;
    uint8_t *byte;
} four_t;

static __device__ group_t group_at(const bt_ternary_quantize &p, int64_t g) {
    if (p.lds == 0)
        return {0, p.n, 0, p.k};
    return {g / p.lds, 1, g % p.lds * p.group, p.group};
}

static __device__ int64_t fours_in(const group_t &g) {
    return g.rows * bt_div_up(g.columns, 4);
}

static __device__ four_t load_four(const bt_ternary_quantize &p, const group_t &g, int64_t index) {
    const int64_t across = bt_div_up(g.columns, 4);
    const int64_t row = g.row + index / across, offset = index % across * 4, column = g.column + offset;
    four_t four;
    four.count = (int)(g.columns - offset < 4 ? g.columns - offset : 4);
    four.byte = p.packed + row * p.ldw + column / 4;
    for (int i = 0; i < 4; i++)
        four.w[i] = i < four.count ? bt_load(p.w, p.w_type, row * p.ldx + column + i) : 0.0f;
    return four;
}

static __device__ double block_sum(double value, double *scratch) {
    return bt_block_reduce(value, scratch, [](double a, double b) { return a + b; });
}

static __global__ void measure(bt_ternary_quantize p, plan_t plan) {
    __shared__ double sums[BT_MAX_THREADS];
    __shared__ uint32_t most[BT_MAX_THREADS];
    for (int64_t item = blockIdx.x; item < plan.groups * plan.slices; item += gridDim.x) {
        const group_t g = group_at(p, item / plan.slices);
        const int64_t fours = fours_in(g), length = bt_div_up(fours, plan.slices);
        const int64_t begin = item % plan.slices * length, end = begin + length < fours ? begin + length : fours;
        double sum = 0.0;
        uint32_t absmax = 0;
        for (int64_t at = begin + threadIdx.x; at < end; at += blockDim.x) {
            const four_t four = load_four(p, g, at);
            for (int i = 0; i < 4; i++) {
                const float a = fabsf(four.w[i]);
                const uint32_t bits = bt_float_bits(a);
                sum += (double)a;
                absmax = bits > absmax ? bits : absmax;
            }
        }
        sum = block_sum(sum, sums);
        absmax = bt_block_reduce(absmax, most, [](uint32_t a, uint32_t b) { return a > b ? a : b; });
        if (threadIdx.x == 0)
            plan.partial[item] = {sum, 0, absmax};
    }
}

static __device__ rule_t rule_of(const bt_ternary_quantize &p, uint32_t absmax, float mean) {
    const float f = p.threshold_factor;
    if (absmax == 0 || absmax >= INFINITE)
        return {0.0f, 0.0f, absmax, mean};
    if (p.method == BT_METHOD_MAX)
        return {1.0f, __fmul_rn(f, bt_bits_float(absmax)), absmax, mean};
    if (p.method == BT_METHOD_TWN)
        return {1.0f, __fmul_rn(f, mean), absmax, mean};
    if (p.method == BT_METHOD_ABSMEAN)
        return {__fdiv_rn(1.0f, fmaxf(mean, BT_SCALE_EPS)), f, absmax, mean};
    return {1.0f, 0.0f, absmax, mean}; /* the methods that sort replace it; for nm34 it keeps what is not zero */
}

static __global__ void rules(bt_ternary_quantize p, plan_t plan) {
    const int64_t step = (int64_t)gridDim.x * blockDim.x;
    for (int64_t g = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; g < plan.groups; g += step) {
        const partial_t *partial = plan.partial + g * plan.slices;
        double sum = 0.0;
        uint32_t absmax = 0;
        for (int64_t s = 0; s < plan.slices; s++) {
            sum += partial[s].sum;
            absmax = partial[s].absmax > absmax ? partial[s].absmax : absmax;
        }
        const float mean = absmax < INFINITE && plan.count > 0 ? (float)(sum / (double)plan.count) : 0.0f;
        plan.rule[g] = rule_of(p, absmax, mean);
    }
}

/* Keys of `number` groups from `first` on. */
static __global__ void fill(bt_ternary_quantize p, plan_t plan, int64_t first, int64_t number) {
    const int64_t step = (int64_t)gridDim.x * blockDim.x;
    for (int64_t at = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; at < number * plan.padded; at += step) {
        const group_t g = group_at(p, first + at / plan.padded);
        const int64_t i = at % plan.padded;
        plan.keys[at] = PADDING;
        if (i < plan.count) {
            const int64_t index = (g.row + i / g.columns) * p.ldx + g.column + i % g.columns;
            plan.keys[at] = bt_float_bits(bt_load(p.w, p.w_type, index)) & 0x7fffffffu;
        }
    }
}

/* One pass of the network: runs of `size` keys get their order, alternately up and down, from keys `stride` apart. */
static __global__ void sort_pass(uint32_t *keys, int64_t pairs, int64_t padded, int64_t size, int64_t stride) {
    const int64_t step = (int64_t)gridDim.x * blockDim.x;
    for (int64_t pair = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; pair < pairs; pair += step) {
        const int64_t low = 2 * pair - (pair & (stride - 1)), high = low + stride;
        const bool up = (low & (padded - 1) & size) == 0;
        const uint32_t a = keys[low], b = keys[high];
        if ((a > b) == up) {
            keys[low] = b;
            keys[high] = a;
        }
    }
}

static __global__ void median(plan_t plan, float threshold, int64_t first, int64_t number) {
    const int64_t step = (int64_t)gridDim.x * blockDim.x;
    for (int64_t g = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; g < number; g += step) {
        rule_t *rule = plan.rule + first + g;
        const float value = bt_bits_float(plan.keys[g * plan.padded + (plan.count - 1) / 2]);
        if (rule->multiplier != 0.0f) {
            rule->multiplier = __fdiv_rn(1.0f, fmaxf(value, BT_SCALE_EPS));
            rule->threshold = threshold;
        }
    }
}

/* The best cut among ranks [begin, end), counted from the largest magnitude; `sum` is that of the ranks before. Equal
 * magnitudes are kept together, see the scalar kernel. */
static __device__ optimum_t best_cut(const uint32_t *keys, int64_t count, int64_t begin, int64_t end, double sum) {
    optimum_t best = {0.0, 1u};
    for (int64_t rank = begin; rank < end; rank++) {
        const uint32_t key = keys[count - 1 - rank];
        sum += (double)bt_bits_float(key);
        if (rank + 1 < count && keys[count - 2 - rank] == key)
            continue;
        const double gain = sum * sum / (double)(rank + 1);
        if (gain > best.gain)
            best = {gain, key};
    }
    return best;
}

/* A block takes a group, a thread a run of ranks. Of equal gains the one that keeps fewer wins. */
static __global__ void optimum(plan_t plan, int64_t first, int64_t number) {
    __shared__ double sums[BT_MAX_THREADS];
    __shared__ optimum_t scratch[BT_MAX_THREADS];
    const int64_t count = plan.count, length = bt_div_up(count, blockDim.x), begin = threadIdx.x * length;
    const int64_t end = begin + length < count ? begin + length : count;
    for (int64_t g = blockIdx.x; g < number; g += gridDim.x) {
        const uint32_t *keys = plan.keys + g * plan.padded;
        double sum = 0.0, before = 0.0;
        for (int64_t rank = begin; rank < end; rank++)
            sum += (double)bt_bits_float(keys[count - 1 - rank]);
        sums[threadIdx.x] = sum;
        __syncthreads();
        for (unsigned t = 0; t < threadIdx.x; t++)
            before += sums[t];
        optimum_t best = best_cut(keys, count, begin, end, before);
        best = bt_block_reduce(best, scratch, [](optimum_t a, optimum_t b) {
            return b.gain > a.gain || (b.gain == a.gain && b.cut > a.cut) ? b : a;
        });
        if (threadIdx.x == 0 && plan.rule[first + g].multiplier != 0.0f)
            plan.rule[first + g].threshold = bt_bits_float(best.cut - 1);
    }
}

static __global__ void encode(bt_ternary_quantize p, plan_t plan) {
    __shared__ double sums[BT_MAX_THREADS];
    __shared__ int64_t numbers[BT_MAX_THREADS];
    for (int64_t item = blockIdx.x; item < plan.groups * plan.slices; item += gridDim.x) {
        const group_t g = group_at(p, item / plan.slices);
        const rule_t rule = plan.rule[item / plan.slices];
        const int64_t fours = fours_in(g), length = bt_div_up(fours, plan.slices);
        const int64_t begin = item % plan.slices * length, end = begin + length < fours ? begin + length : fours;
        double sum = 0.0;
        int64_t number = 0;
        for (int64_t at = begin + threadIdx.x; at < end; at += blockDim.x) {
            four_t four = load_four(p, g, at);
            if (p.method == BT_METHOD_NM34)
                bt_drop_smallest(four.w);
            unsigned byte = 0;
            for (int i = 0; i < 4; i++) {
                const float w = four.w[i], a = fabsf(w);
                const unsigned keep = i < four.count && __fmul_rn(a, rule.multiplier) > rule.threshold;
                byte |= keep << (w < 0.0f) << (2 * i);
                sum += keep ? (double)a : 0.0;
                number += keep;
            }
            *four.byte = (uint8_t)byte;
        }
        sum = block_sum(sum, sums);
        number = bt_block_reduce(number, numbers, [](int64_t a, int64_t b) { return a + b; });
        if (threadIdx.x == 0)
            plan.partial[item] = {sum, number, 0};
    }
}

static __global__ void finish(bt_ternary_quantize p, plan_t plan) {
    const int64_t step = (int64_t)gridDim.x * blockDim.x;
    for (int64_t g = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; g < plan.groups; g += step) {
        const partial_t *partial = plan.partial + g * plan.slices;
        const rule_t rule = plan.rule[g];
        double sum = 0.0;
        int64_t number = 0;
        for (int64_t s = 0; s < plan.slices; s++) {
            sum += partial[s].sum;
            number += partial[s].number;
        }
        float scale = number > 0 ? (float)(sum / (double)number) : BT_SCALE_EPS;
        if (rule.absmax >= INFINITE)
            scale = bt_bits_float(QUIET_NAN);
        else if (rule.absmax > 0 && p.rule == BT_SCALE_MAX)
            scale = bt_bits_float(rule.absmax);
        else if (rule.absmax > 0 && p.rule == BT_SCALE_MEAN)
            scale = fmaxf(rule.mean, BT_SCALE_EPS);
        p.scale[g] = scale;
    }
}

static plan_t plan_for(const bt_ternary_quantize *p) {
    plan_t plan;
    plan.groups = bt_ternary_quantize_groups(p);
    plan.slices = bt_ternary_quantize_slices(p);
    plan.padded = bt_ternary_quantize_padded(p);
    plan.batch = bt_ternary_quantize_batch(p);
    plan.count = bt_ternary_quantize_group_size(p);
    plan.partial = (partial_t *)p->workspace;
    plan.rule = (rule_t *)(plan.partial + plan.groups * plan.slices);
    plan.keys = (uint32_t *)(plan.rule + plan.groups);
    return plan;
}

/* Block and grid for one thread a piece, and block for the weights of a slice. */
static dim3 block_for(int64_t pieces) {
    return dim3(bt_block_threads(pieces));
}

static dim3 grid_for(int64_t pieces) {
    return dim3(bt_blocks(bt_div_up(pieces, bt_block_threads(pieces))));
}

static bt_status sort_keys(const bt_ternary_quantize *p, const plan_t &plan, int64_t number) {
    const int64_t pairs = number * plan.padded / 2;
    for (int64_t size = 2; size <= plan.padded; size *= 2)
        for (int64_t stride = size / 2; stride > 0; stride /= 2) {
            const bt_status status = BT_LAUNCH(sort_pass, grid_for(pairs), block_for(pairs), p->stream, plan.keys,
                                               pairs, plan.padded, size, stride);
            if (status != BT_OK)
                return status;
        }
    return BT_OK;
}

/* The rules of the methods that sort, one batch of groups after another. */
static bt_status sorted_rules(const bt_ternary_quantize *p, const plan_t &plan) {
    for (int64_t first = 0; first < plan.groups; first += plan.batch) {
        const int64_t left = plan.groups - first, number = left < plan.batch ? left : plan.batch;
        const int64_t keys = number * plan.padded;
        bt_status status = BT_LAUNCH(fill, grid_for(keys), block_for(keys), p->stream, *p, plan, first, number);
        if (status == BT_OK)
            status = sort_keys(p, plan, number);
        if (status == BT_OK && p->method == BT_METHOD_ABSMEDIAN)
            status = BT_LAUNCH(median, grid_for(number), block_for(number), p->stream, plan, p->threshold_factor, first,
                               number);
        else if (status == BT_OK)
            status = BT_LAUNCH(optimum, dim3(bt_blocks(number)), block_for(plan.count), p->stream, plan, first, number);
        if (status != BT_OK)
            return status;
    }
    return BT_OK;
}

extern "C" bt_status bt_ternary_quantize_cuda_baseline(const bt_ternary_quantize *p, int64_t, int64_t) {
    const plan_t plan = plan_for(p);
    if (plan.groups == 0)
        return BT_OK;
    const dim3 items(bt_blocks(plan.groups * plan.slices)), block(block_for(bt_div_up(plan.count, 4 * plan.slices)));
    const dim3 groups(grid_for(plan.groups)), group_block(block_for(plan.groups));
    bt_status status = BT_LAUNCH(measure, items, block, p->stream, *p, plan);
    if (status == BT_OK)
        status = BT_LAUNCH(rules, groups, group_block, p->stream, *p, plan);
    if (status == BT_OK && plan.padded > 0 && plan.count > 0)
        status = sorted_rules(p, plan);
    if (status == BT_OK)
        status = BT_LAUNCH(encode, items, block, p->stream, *p, plan);
    if (status == BT_OK)
        status = BT_LAUNCH(finish, groups, group_block, p->stream, *p, plan);
    return status;
}
