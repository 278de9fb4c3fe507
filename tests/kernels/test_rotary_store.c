/* rotary_store: the scalar kernel against its formula in fp64, what is stored against the heads, the others against its
 * bits. */
#include "harness.h"

#include <math.h>
#include <string.h>

typedef struct shape_t {
    int64_t heads, kv_heads, dim, rotated, gap;
} shape_t;

enum { SEQUENCES = 3 };

static double turned(const bt_rotary_store *p, const void *before, int64_t token, int64_t h, int64_t c) {
    const int64_t half = p->rotated / 2, at = token * p->ldx + h * p->dim, other = c < half ? c + half : c - half;
    const double x = value_at(before, p->type, at + c);
    if (h >= p->heads_q + p->kv_heads || c >= p->rotated)
        return x;
    return x * value_at(p->cos, p->type, token * p->ldcos + c) +
           value_at(before, p->type, at + other) * value_at(p->sin, p->type, token * p->ldcos + c);
}

static void check_formula(const bt_rotary_store *p, const void *before, int64_t tokens) {
    const double tolerance = p->type == BT_F32 ? 1e-6 : p->type == BT_F16 ? 5e-3 : 4e-2;
    double worst = 0.0;
    for (int64_t token = 0; token < tokens; token++)
        for (int64_t h = 0; h < p->heads_q + 2 * p->kv_heads; h++)
            for (int64_t c = 0; c < p->dim; c++)
                worst = fmax(worst, fabs(value_at(p->heads, p->type, token * p->ldx + h * p->dim + c) -
                                         turned(p, before, token, h, c)));
    check(worst <= tolerance, "scalar against the formula");
}

/* Slots of the new tokens hold the heads rounded once to their type, at most half a unit in the last of its 24, 11 or 8
 * bits away; all others are poison still. */
static void check_slots(const bt_rotary_store *p, const void *base, int values, int64_t rows, int64_t capacity) {
    const double relative = p->kv_type == BT_F32 ? 0.0 : p->kv_type == BT_F16 ? 0x1p-11 : 0x1p-8;
    const double smallest = p->kv_type == BT_F16 ? 0x1p-25 : 0.0; /* below the normal numbers of float16 */
    int right = 1;
    for (int64_t row = 0; row < rows; row++) {
        const bt_attention_sequence *s = p->sequences;
        while (s->row != row)
            s++;
        for (int64_t h = 0; h < p->kv_heads; h++)
            for (int64_t t = 0; t < capacity; t++)
                for (int64_t c = 0; c < p->dim; c++) {
                    const int64_t at = row * p->ldrow + h * p->ldhead + t * p->ldslot + c, i = t - s->length + s->count;
                    const int64_t head = p->heads_q + values * p->kv_heads + h;
                    uint32_t poison;
                    memset(&poison, POISON, sizeof poison);
                    if (i < 0 || i >= s->count)
                        right &= memcmp((const char *)base + at * (int64_t)type_size(p->kv_type), &poison,
                                        type_size(p->kv_type)) == 0;
                    else {
                        const double given = value_at(p->heads, p->type, (s->token + i) * p->ldx + head * p->dim + c);
                        right &= fabs(value_at(base, p->kv_type, at) - given) <= fabs(given) * relative + smallest;
                    }
                }
    }
    check(right, "slots of the cache");
}

static void check_rotary(shape_t shape, int type, int kv_type) {
    const int64_t capacity = 5, all = shape.heads + 2 * shape.kv_heads;
    bt_attention_sequence sequences[SEQUENCES] = {{.token = 0, .count = 2, .row = 2, .length = 5},
                                                  {.token = 2, .count = 0, .row = 0, .length = 1},
                                                  {.token = 2, .count = 3, .row = 1, .length = 4}};
    const int64_t tokens = 5;
    bt_rotary_store p = {.sequences = sequences, .heads_q = shape.heads, .kv_heads = shape.kv_heads, .dim = shape.dim};
    p.rotated = shape.rotated, p.type = type, p.kv_type = kv_type;
    p.ldx = all * shape.dim + shape.gap, p.ldcos = shape.rotated + shape.gap;
    p.ldslot = shape.dim + shape.gap, p.ldhead = capacity * p.ldslot, p.ldrow = shape.kv_heads * p.ldhead;
    set_context("rotary_store heads=%ld/%ld dim=%ld rotated=%ld gap=%ld %s cache %s", (long)shape.heads,
                (long)shape.kv_heads, (long)shape.dim, (long)shape.rotated, (long)shape.gap, type_name(type),
                type_name(kv_type));
    const size_t size = matrix_bytes(tokens, all * shape.dim, p.ldx, type);
    const size_t slots = matrix_bytes(SEQUENCES * shape.kv_heads * capacity, shape.dim, p.ldslot, kv_type);
    void *const before = buffer(size), *const angles = buffer(matrix_bytes(tokens, shape.rotated, p.ldcos, type));
    fill_normal(before, type, (int64_t)(size / type_size(type)));
    fill_normal(angles, type, matrix_elements(tokens, shape.rotated, p.ldcos));
    void *const sines = buffer(matrix_bytes(tokens, shape.rotated, p.ldcos, type));
    fill_normal(sines, type, matrix_elements(tokens, shape.rotated, p.ldcos));
    p.cos = angles, p.sin = sines;
    const void *expected[3] = {NULL, NULL, NULL};
    for (const bt_kernel *kernel = bt_kernels + bt_kernel_count; kernel-- > bt_kernels;) { /* the scalar one first */
        if (kernel->op != BT_OP_rotary_store || kernel->device != BT_CPU || !bt_kernel_usable(kernel))
            continue;
        p.heads = memcpy(buffer(size), before, size), p.k = buffer(slots), p.v = buffer(slots);
        bt_rotary_store_fn *run = (bt_rotary_store_fn *)kernel->run;
        run(&p, 2, tokens);
        run(&p, 0, 2);
        if (!expected[0]) {
            expected[0] = p.heads, expected[1] = p.k, expected[2] = p.v;
            check_formula(&p, before, tokens);
            check_slots(&p, p.k, 0, SEQUENCES, capacity);
            check_slots(&p, p.v, 1, SEQUENCES, capacity);
        }
        check(same_values(p.heads, expected[0], type, (int64_t)(size / type_size(type))), kernel->variant);
        check(same_values(p.k, expected[1], kv_type, (int64_t)(slots / type_size(kv_type))), kernel->variant);
        check(same_values(p.v, expected[2], kv_type, (int64_t)(slots / type_size(kv_type))), kernel->variant);
    }
    release();
}

void test_rotary_store(void) {
    for (int type = BT_F32; type <= BT_BF16; type++)
        for (int kv_type = BT_F32; kv_type <= BT_BF16; kv_type++) {
            check_rotary((shape_t){.heads = 3, .kv_heads = 1, .dim = 16, .rotated = 16}, type, kv_type);
            check_rotary((shape_t){.heads = 2, .kv_heads = 2, .dim = 20, .rotated = 6, .gap = 3}, type, kv_type);
            check_rotary((shape_t){.heads = 1, .kv_heads = 1, .dim = 1, .rotated = 0}, type, kv_type);
            check_rotary((shape_t){.heads = 1, .kv_heads = 1, .dim = 512, .rotated = 512}, type, kv_type);
        }
}
