/* decode_attention: the scalar kernel against softmax in fp64, the others against its bits. */
#include "harness.h"

#include <math.h>
#include <string.h>

enum { MOST_SEQUENCES = 4 };

typedef struct shape_t {
    int64_t heads, kv_heads, dim, window, gap, capacity;
} shape_t;

/* Slot t of head h of a row, as the kernels find it. */
static double slot_value(const bt_decode_attention *p, const void *base, int64_t row, int64_t h, int64_t t, int64_t c) {
    return value_at(base, p->kv_type, row * p->ldrow + h * p->ldhead + t * p->ldslot + c);
}

static double expected_score(const bt_decode_attention *p, const bt_attention_sequence *s, int64_t i, int64_t h,
                             int64_t t) {
    double sum = 0.0;
    for (int64_t c = 0; c < p->dim; c++)
        sum += value_at(p->q, p->type, (s->token + i) * p->ldq + h * p->dim + c) *
               slot_value(p, p->k, s->row, h / (p->heads / p->kv_heads), t, c);
    return sum * p->factor;
}

/* The largest difference of a head of a token; values are about 1, scores up to about 10. */
static double worst_of(const bt_decode_attention *p, const bt_attention_sequence *s, int64_t i, int64_t h) {
    double weight[2048], total = 0.0, most = -INFINITY, worst = 0.0;
    const int64_t position = s->length - s->count + i, begin = bt_attention_begin(p->window, position);
    for (int64_t t = begin; t <= position; t++)
        most = fmax(most, weight[t] = expected_score(p, s, i, h, t));
    for (int64_t t = begin; t <= position; t++)
        total += weight[t] = exp2(weight[t] - most);
    for (int64_t c = 0; c < p->dim; c++) {
        double sum = 0.0;
        for (int64_t t = begin; t <= position; t++)
            sum += weight[t] / total * slot_value(p, p->v, s->row, h / (p->heads / p->kv_heads), t, c);
        worst = fmax(worst, fabs(sum - value_at(p->y, p->type, (s->token + i) * p->ldy + h * p->dim + c)));
    }
    return worst;
}

static void check_formula(const bt_decode_attention *p) {
    const double tolerance = p->type == BT_F32 ? 4e-6 : p->type == BT_F16 ? 2e-3 : 1.6e-2;
    double worst = 0.0;
    for (const bt_attention_sequence *s = p->sequences; s < p->sequences + p->count; s++)
        for (int64_t i = 0; i < s->count; i++)
            for (int64_t h = 0; h < p->heads; h++)
                worst = fmax(worst, worst_of(p, s, i, h));
    check(worst <= tolerance, "scalar against softmax");
}

/* One row of the cache fills its buffer to the last slot that a token sees. */
static void *filled(const bt_decode_attention *p, int64_t rows, int64_t longest) {
    const int64_t count = (rows - 1) * p->ldrow + (p->kv_heads - 1) * p->ldhead + (longest - 1) * p->ldslot + p->dim;
    void *const base = buffer(longest ? (size_t)count * type_size(p->kv_type) : 0);
    fill_normal(base, p->kv_type, longest ? count : 0);
    return base;
}

static void run_in_two(const bt_decode_attention *p, bt_decode_attention_fn *run, int64_t tiles, int64_t pairs) {
    run(p, tiles / 2, tiles);
    run(p, 0, tiles / 2);
    bt_decode_attention_combine(p, pairs / 2, pairs);
    bt_decode_attention_combine(p, 0, pairs / 2);
}

static void compare(bt_decode_attention *p, int64_t tiles, int64_t parts, int64_t tokens, size_t size) {
    const int64_t columns = p->heads * p->dim;
    const void *const expected = p->y;
    for (const bt_kernel *kernel = NULL; (kernel = next_compared(kernel, BT_OP_decode_attention));) {
        p->y = buffer(size);
        p->parts = buffer((size_t)(parts * bt_attention_part_size(p)) * sizeof(float));
        run_in_two(p, (bt_decode_attention_fn *)kernel->run, tiles, tokens * p->heads);
        check_matrix(p->y, expected, tokens, columns, p->ldy, p->type, kernel->variant);
    }
}

/* Sequences of some lengths and counts, up to the first length that is negative; `spoil` puts NaN and Inf in. */
static void check_attention(shape_t shape, int type, int kv_type, const int64_t *lengths, const int64_t *counts,
                            int spoil) {
    const int64_t columns = shape.heads * shape.dim, ld = columns + shape.gap;
    bt_attention_sequence sequences[MOST_SEQUENCES];
    int64_t tokens = 0, longest = 0, parts, rows = 0;
    for (; rows < MOST_SEQUENCES && lengths[rows] >= 0; tokens += counts[rows++]) {
        sequences[rows] = (bt_attention_sequence){.token = tokens, .count = counts[rows], .length = lengths[rows]};
        longest = lengths[rows] > longest ? lengths[rows] : longest;
    }
    for (int64_t i = 0; i < rows; i++)
        sequences[i].row = rows - 1 - i;
    bt_decode_attention p = {.sequences = sequences, .count = rows, .heads = shape.heads, .kv_heads = shape.kv_heads};
    p.dim = shape.dim, p.window = shape.window, p.ldq = p.ldy = ld, p.type = type, p.kv_type = kv_type;
    p.ldslot = shape.dim + shape.gap, p.ldhead = longest * p.ldslot, p.ldrow = shape.kv_heads * p.ldhead;
    p.factor = (float)(1.4426950408889634 / sqrt((double)shape.dim));
    set_context(
        "decode_attention heads=%ld/%ld dim=%ld window=%ld gap=%ld %s cache %s length=%ld count=%ld rows=%ld %d",
        (long)shape.heads, (long)shape.kv_heads, (long)shape.dim, (long)shape.window, (long)shape.gap, type_name(type),
        type_name(kv_type), (long)lengths[0], (long)counts[0], (long)rows, spoil);
    const size_t size = matrix_bytes(tokens, columns, ld, type);
    void *const q = buffer(size), *const k = filled(&p, rows, longest), *const v = filled(&p, rows, longest);
    fill_normal(q, type, matrix_elements(tokens, columns, ld));
    if (spoil) { /* a NaN score, one of Inf or -Inf by the sign of q, and a value */
        store_value(k, kv_type, (longest / 2) * p.ldslot, spoil == 1 ? NAN : spoil == 2 ? INFINITY : 1.0f);
        store_value(v, kv_type, (longest / 3) * p.ldslot + shape.dim - 1, spoil == 3 ? -INFINITY : 1.0f);
    }
    p.q = q, p.k = k, p.v = v, p.y = buffer(size);
    const int64_t tiles = bt_attention_place(&p, sequences, &parts);
    p.parts = buffer((size_t)(parts * bt_attention_part_size(&p)) * sizeof(float));
    run_in_two(&p, bt_decode_attention_scalar, tiles, tokens * p.heads);
    if (!spoil)
        check_formula(&p);
    compare(&p, tiles, parts, tokens, size);
    release();
}

static void check_sequences(shape_t shape, int type, int kv_type, int64_t length, int64_t count) {
    const int64_t lengths[MOST_SEQUENCES] = {length, -1}, counts[MOST_SEQUENCES] = {count};
    check_attention(shape, type, kv_type, lengths, counts, 0);
}

/* exp2 against the library's, and where it ends. */
static void check_exp2(void) {
    double worst = 0.0;
    set_context("bt_attention_exp2");
    for (float x = 0.0f; x >= BT_EXP2_LEAST; x -= 0.00917f)
        worst = fmax(worst, fabs(bt_attention_exp2(x) / exp2((double)x) - 1.0));
    check(worst <= 1.5e-7, "error");
    check(bt_attention_exp2(0.0f) == 1.0f && bt_attention_exp2(-126.0f) == 0x1p-126f, "powers");
    check(bt_attention_exp2(-126.1f) == 0.0f && bt_attention_exp2(-INFINITY) == 0.0f, "zero");
    check(isnan(bt_attention_exp2(NAN)), "NaN");
}

void test_decode_attention(void) {
    check_exp2();
    for (int kv_type = BT_F32; kv_type <= BT_BF16; kv_type++) {
        for (int64_t group = 1; group <= 6; group++)
            check_sequences((shape_t){.heads = 2 * group, .kv_heads = 2, .dim = 64}, BT_F32, kv_type, 33, 1);
        for (int64_t dim = 16; dim <= 144; dim += 16)
            check_sequences((shape_t){.heads = 3, .kv_heads = 1, .dim = dim}, BT_F32, kv_type, 19, 2);
        check_sequences((shape_t){.heads = 2, .kv_heads = 1, .dim = 40}, BT_F32, kv_type, 5, 1);
        check_sequences((shape_t){.heads = 2, .kv_heads = 2, .dim = 1, .gap = 1}, BT_F32, kv_type, 3, 3);
        check_sequences((shape_t){.heads = 1, .kv_heads = 1, .dim = 512}, BT_F32, kv_type, 17, 1);
        check_sequences((shape_t){.heads = 4, .kv_heads = 1, .dim = 32, .gap = 3}, kv_type, BT_BF16, 257, 8);
        check_sequences((shape_t){.heads = 4, .kv_heads = 2, .dim = 16}, BT_F32, kv_type, 1100, 1);
        check_sequences((shape_t){.heads = 2, .kv_heads = 1, .dim = 32, .window = 30}, BT_F32, kv_type, 516, 7);
        check_sequences((shape_t){.heads = 2, .kv_heads = 1, .dim = 32, .window = 300}, BT_F32, kv_type, 900, 1);
        const int64_t lengths[MOST_SEQUENCES] = {1, 0, 700, 255}, counts[MOST_SEQUENCES] = {1, 0, 5, 3};
        for (int spoil = 0; spoil <= 3; spoil++)
            check_attention((shape_t){.heads = 3, .kv_heads = 1, .dim = 64, .gap = 5}, BT_F32, kv_type, lengths, counts,
                            spoil);
    }
}
