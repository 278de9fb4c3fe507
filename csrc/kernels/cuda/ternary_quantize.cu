/* Floating weights to packed codes and scales, by the rules of the header.
 *
 *   a scale a row or group     whole_groups                                             w is read from memory once
 *   one scale for all          measure -> encode -> finish                              twice
 *   absmedian and optimal      measure -> rules -> [ fill -> sort -> median or optimum ] -> encode -> finish
 *
 * A block takes a group, or a slice of it where one scale is for all, a thread the four weights of a byte at a time;
 * sums in fp64 are a tree of fixed shape over the threads of a block, slices being added likewise. Whoever needs what
 * other blocks measured is a launch of its own, or adds it up again: no atomics. Methods that sort keep the bits of
 * |w|, which have the order of the magnitudes, in rows padded to a power of two, and sort all rows at once by a bitonic
 * network. The workspace holds what was measured and what was kept of all slices, the rules of all groups, the keys of
 * one batch of groups. */
#include "quantize_sort.cuh"

/* The weights of one byte of the packed rows. */
typedef struct four_t {
    float w[4];
    int count;
    uint8_t *byte;
} four_t;

static __device__ int64_t fours_in(const group_t &g) {
    return g.rows * bt_div_up(g.columns, 4);
}

/* Where a thread is among the fours of a group: `step` further each time, without a division. */
typedef struct cursor_t {
    int64_t row, offset, across; /* offset in fours, of `across` a row */
} cursor_t;

static __device__ cursor_t cursor_at(const group_t &g, int64_t index) {
    const int64_t across = g.columns > 0 ? bt_div_up(g.columns, 4) : 1;
    return {g.row + index / across, index % across, across};
}

static __device__ void advance(cursor_t &at, int64_t step) {
    for (at.offset += step; at.offset >= at.across; at.offset -= at.across)
        at.row++;
}

struct alignas(8) four_halves_t {
    uint16_t h[4];
};

static __device__ four_t load_four(const bt_ternary_quantize &p, const plan_t &plan, const group_t &g,
                                   const cursor_t &at) {
    const int64_t column = g.column + 4 * at.offset, left = g.columns - 4 * at.offset;
    const int64_t first = at.row * p.ldx + column;
    four_t four;
    four.count = (int)(left < 4 ? left : 4);
    four.byte = p.packed + at.row * p.ldw + column / 4;
    if (plan.aligned && four.count == 4) {
        if (p.w_type == BT_F32) {
            const uint4 v = *(const uint4 *)((const float *)p.w + first);
            const uint32_t bits[4] = {v.x, v.y, v.z, v.w};
            for (int i = 0; i < 4; i++)
                four.w[i] = bt_bits_float(bits[i]);
            return four;
        }
        const four_halves_t v = *(const four_halves_t *)((const uint16_t *)p.w + first);
        for (int i = 0; i < 4; i++)
            four.w[i] = p.w_type == BT_F16 ? bt_from_f16(v.h[i]) : bt_from_bf16(v.h[i]);
        return four;
    }
    for (int i = 0; i < 4; i++)
        four.w[i] = i < four.count ? bt_load(p.w, p.w_type, first + i) : 0.0f;
    return four;
}

struct add_t {
    __device__ partial_t operator()(const partial_t &a, const partial_t &b) const {
        return {a.sum + b.sum, a.number + b.number, a.absmax > b.absmax ? a.absmax : b.absmax};
    }
};

/* Fours [begin, end) of a group, by all threads of the block. */
static __device__ partial_t measure_fours(const bt_ternary_quantize &p, const plan_t &plan, const group_t &g,
                                          int64_t begin, int64_t end, partial_t *scratch) {
    partial_t own = {0.0, 0, 0};
    cursor_t at = cursor_at(g, begin + threadIdx.x);
    for (int64_t index = begin + threadIdx.x; index < end; index += blockDim.x, advance(at, blockDim.x)) {
        const four_t four = load_four(p, plan, g, at);
        for (int i = 0; i < 4; i++) {
            const float a = fabsf(four.w[i]);
            const uint32_t bits = bt_float_bits(a);
            own.sum += (double)a;
            own.absmax = bits > own.absmax ? bits : own.absmax;
        }
    }
    return bt_block_reduce(own, scratch, add_t());
}

/* The codes of the same fours, and what the scale wants of them. */
static __device__ partial_t encode_fours(const bt_ternary_quantize &p, const plan_t &plan, const group_t &g,
                                         const rule_t &rule, int64_t begin, int64_t end, partial_t *scratch) {
    const bool squares = bt_scale_adds(p.rule) == BT_ADDS_SQUARES;
    partial_t own = {0.0, 0, 0};
    cursor_t at = cursor_at(g, begin + threadIdx.x);
    for (int64_t index = begin + threadIdx.x; index < end; index += blockDim.x, advance(at, blockDim.x)) {
        four_t four = load_four(p, plan, g, at);
        for (int i = 0; squares && i < 4; i++)
            own.sum += (double)four.w[i] * (double)four.w[i];
        if (p.method == BT_METHOD_NM34)
            bt_drop_smallest(four.w);
        unsigned byte = 0;
        for (int i = 0; i < 4; i++) {
            const float w = four.w[i], a = fabsf(w);
            const unsigned keep = i < four.count && __fmul_rn(a, rule.keep.multiplier) > rule.keep.threshold;
            byte |= keep << (w < 0.0f) << (2 * i);
            own.sum += keep && !squares ? (double)a : 0.0;
            own.number += keep;
        }
        *four.byte = (uint8_t)byte;
    }
    return bt_block_reduce(own, scratch, add_t());
}

/* The partials of a group's slices, by all threads of the block. */
static __device__ partial_t total_of(const partial_t *partial, int64_t slices, partial_t *scratch) {
    partial_t own = {0.0, 0, 0};
    for (int64_t s = threadIdx.x; s < slices; s += blockDim.x)
        own = add_t()(own, partial[s]);
    return bt_block_reduce(own, scratch, add_t());
}

/* Methods that sort put in another rule, where this one keeps anything. */
static __device__ rule_t rule_from(const bt_ternary_quantize &p, const plan_t &plan, const partial_t &found) {
    const bool finite = found.absmax < INFINITE && plan.count > 0;
    const float mean = finite ? (float)(found.sum / (double)plan.count) : 0.0f;
    if (!finite || found.absmax == 0)
        return {{0.0f, 0.0f}, found.absmax, mean};
    const float by = bt_method_by(p.method) == BT_BY_MEAN ? mean : bt_bits_float(found.absmax);
    return {bt_keep_rule_of(p.method, p.threshold_factor, by), found.absmax, mean};
}

static __device__ float scale_of(const bt_ternary_quantize &p, const rule_t &rule, const partial_t &encoded) {
    if (rule.absmax >= INFINITE)
        return bt_bits_float(QUIET_NAN);
    if (rule.absmax == 0)
        return BT_SCALE_EPS;
    return bt_scale_of(&p, bt_bits_float(rule.absmax), rule.mean, encoded.sum, encoded.number);
}

static __global__ void whole_groups(bt_ternary_quantize p, plan_t plan) {
    __shared__ partial_t scratch[BT_MAX_THREADS];
    for (int64_t index = blockIdx.x; index < plan.groups; index += gridDim.x) {
        const group_t g = group_at(p, index);
        const rule_t rule = rule_from(p, plan, measure_fours(p, plan, g, 0, fours_in(g), scratch));
        const partial_t kept = encode_fours(p, plan, g, rule, 0, fours_in(g), scratch);
        if (threadIdx.x == 0)
            p.scale[index] = scale_of(p, rule, kept);
    }
}

static __global__ void measure(bt_ternary_quantize p, plan_t plan) {
    __shared__ partial_t scratch[BT_MAX_THREADS];
    for (int64_t item = blockIdx.x; item < plan.groups * plan.slices; item += gridDim.x) {
        const group_t g = group_at(p, item / plan.slices);
        const int64_t fours = fours_in(g), length = bt_div_up(fours, plan.slices);
        const int64_t begin = item % plan.slices * length, end = begin + length < fours ? begin + length : fours;
        const partial_t measured = measure_fours(p, plan, g, begin, end, scratch);
        if (threadIdx.x == 0)
            plan.measured[item] = measured;
    }
}

static __global__ void rules(bt_ternary_quantize p, plan_t plan) {
    __shared__ partial_t scratch[BT_MAX_THREADS];
    for (int64_t g = blockIdx.x; g < plan.groups; g += gridDim.x) {
        const partial_t measured = total_of(plan.measured + g * plan.slices, plan.slices, scratch);
        if (threadIdx.x == 0)
            plan.rule[g] = rule_from(p, plan, measured);
    }
}

/* What methods that do not sort go by follows from what was measured. */
static __device__ rule_t rule_for(const bt_ternary_quantize &p, const plan_t &plan, int64_t g, partial_t *scratch) {
    if (plan.padded > 0)
        return plan.rule[g];
    return rule_from(p, plan, total_of(plan.measured + g * plan.slices, plan.slices, scratch));
}

static __global__ void encode(bt_ternary_quantize p, plan_t plan) {
    __shared__ partial_t scratch[BT_MAX_THREADS];
    for (int64_t item = blockIdx.x; item < plan.groups * plan.slices; item += gridDim.x) {
        const group_t g = group_at(p, item / plan.slices);
        const rule_t rule = rule_for(p, plan, item / plan.slices, scratch);
        const int64_t fours = fours_in(g), length = bt_div_up(fours, plan.slices);
        const int64_t begin = item % plan.slices * length, end = begin + length < fours ? begin + length : fours;
        const partial_t kept = encode_fours(p, plan, g, rule, begin, end, scratch);
        if (threadIdx.x == 0)
            plan.kept[item] = kept;
    }
}

static __global__ void finish(bt_ternary_quantize p, plan_t plan) {
    __shared__ partial_t scratch[BT_MAX_THREADS];
    for (int64_t g = blockIdx.x; g < plan.groups; g += gridDim.x) {
        const rule_t rule = rule_for(p, plan, g, scratch);
        const partial_t kept = total_of(plan.kept + g * plan.slices, plan.slices, scratch);
        if (threadIdx.x == 0)
            p.scale[g] = scale_of(p, rule, kept);
    }
}

static plan_t plan_for(const bt_ternary_quantize *p) {
    plan_t plan;
    plan.groups = bt_ternary_quantize_groups(p);
    plan.slices = bt_ternary_quantize_slices(p);
    plan.padded = bt_ternary_quantize_padded(p);
    plan.batch = bt_ternary_quantize_batch(p);
    plan.count = bt_ternary_quantize_group_size(p);
    const int64_t bytes = p->w_type == BT_F32 ? 4 : 2;
    plan.aligned = (uintptr_t)p->w % (uintptr_t)(4 * bytes) == 0 && p->ldx % 4 == 0;
    plan.measured = (partial_t *)p->workspace;
    plan.kept = plan.measured + plan.groups * plan.slices;
    plan.rule = (rule_t *)(plan.kept + plan.groups * plan.slices);
    plan.keys = (uint32_t *)(plan.rule + plan.groups);
    return plan;
}

extern "C" bt_status bt_ternary_quantize_cuda_baseline(const bt_ternary_quantize *p, int64_t, int64_t) {
    const plan_t plan = plan_for(p);
    if (plan.groups == 0)
        return BT_OK;
    const dim3 block(block_for(bt_div_up(plan.count, 4 * plan.slices))), groups(bt_blocks(plan.groups));
    if (plan.padded == 0 && p->lds > 0)
        return BT_LAUNCH(whole_groups, groups, block, p->stream, *p, plan);
    const dim3 items(bt_blocks(plan.groups * plan.slices)), block_of_slices(block_for(plan.slices));
    bt_status status = BT_LAUNCH(measure, items, block, p->stream, *p, plan);
    if (status == BT_OK && plan.padded > 0)
        status = BT_LAUNCH(rules, groups, block_of_slices, p->stream, *p, plan);
    if (status == BT_OK && plan.padded > 0 && plan.count > 0)
        status = sorted_rules(p, plan);
    if (status == BT_OK)
        status = BT_LAUNCH(encode, items, block, p->stream, *p, plan);
    if (status == BT_OK)
        status = BT_LAUNCH(finish, groups, block_of_slices, p->stream, *p, plan);
    return status;
}
