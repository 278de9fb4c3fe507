/* The rules of the methods that sort: a bitonic network over the bits of |w|, one batch of groups after another. */
#ifndef BT_CUDA_QUANTIZE_SORT_CUH
#define BT_CUDA_QUANTIZE_SORT_CUH

#include "quantize.cuh"

/* Magnitudes `cut` and above give the gain (their sum)^2 / (their number). */
typedef struct optimum_t {
    double gain;
    uint32_t cut;
} optimum_t;

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

static __global__ void median(plan_t plan, int method, float factor, int64_t first, int64_t number) {
    const int64_t step = (int64_t)gridDim.x * blockDim.x;
    for (int64_t g = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; g < number; g += step) {
        rule_t *rule = plan.rule + first + g;
        const float value = bt_bits_float(plan.keys[g * plan.padded + (plan.count - 1) / 2]);
        if (rule->keep.multiplier != 0.0f)
            rule->keep = bt_keep_rule_of(method, factor, value);
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
static __global__ void optimum(plan_t plan, int method, float factor, int64_t first, int64_t number) {
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
        if (threadIdx.x == 0 && plan.rule[first + g].keep.multiplier != 0.0f)
            plan.rule[first + g].keep = bt_keep_rule_of(method, factor, bt_bits_float(best.cut - 1));
    }
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
        if (status == BT_OK && bt_method_by(p->method) == BT_BY_MEDIAN)
            status = BT_LAUNCH(median, grid_for(number), block_for(number), p->stream, plan, p->method,
                               p->threshold_factor, first, number);
        else if (status == BT_OK)
            status = BT_LAUNCH(optimum, dim3(bt_blocks(number)), block_for(plan.count), p->stream, plan, p->method,
                               p->threshold_factor, first, number);
        if (status != BT_OK)
            return status;
    }
    return BT_OK;
}

#endif
