/* Runs one CPU kernel some times, for a tool that counts instructions: two runs of different `calls` leave those calls.
 *
 *   count_kernel OP VARIANT M N K GROUP CALLS
 *
 * OP is ternary_linear_w2a8, ternary_linear_packed (fp32 activations), act_quantize, or prepare, the step before
 * ternary_linear_packed, of which there is one; activations are prepared once, before the calls. */
#include "../csrc/dispatch/kernel_table.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void *filled(int64_t bytes) {
    unsigned char *p = malloc((size_t)bytes);
    if (!p) {
        fprintf(stderr, "count_kernel: no memory for %lld bytes\n", (long long)bytes);
        exit(1);
    }
    memset(p, 0, (size_t)bytes);
    return p;
}

static const bt_kernel *find(const char *op, int dtype, const char *variant) {
    const bt_kernel *kernel = bt_pick(bt_op_find(op), BT_CPU, dtype, NULL, variant);
    if (!kernel) {
        fprintf(stderr, "count_kernel: this CPU has no %s %s\n", op, variant);
        exit(3);
    }
    return kernel;
}

int main(int argc, char **argv) {
    if (argc != 8) {
        fprintf(stderr, "usage: count_kernel OP VARIANT M N K GROUP CALLS\n");
        return 2;
    }
    const char *op = argv[1], *variant = argv[2];
    const int64_t m = atoll(argv[3]), n = atoll(argv[4]), k = atoll(argv[5]), group = atoll(argv[6]);
    const int calls = atoi(argv[7]);
    if (m < 1 || n < 1 || k < 1 || group < 1 || k % group || calls < 0) {
        fprintf(stderr, "count_kernel: M, N, K and GROUP must be positive, and K a multiple of GROUP\n");
        return 2;
    }
    const int64_t padded = (k + 255) / 256 * 256, row = (k + 3) / 4, groups = k / group;
    float *x = filled(4 * m * k), *xp = filled(4 * m * padded), *y = filled(4 * m * n), *scale = filled(4 * n * groups);
    float *q_scale = filled(4 * m);
    int32_t *q_sum = filled(4 * m);
    int8_t *q = filled(m * padded);
    uint8_t *w = filled(n * row);
    uint32_t state = 1;
    for (int64_t i = 0; i < m * k; i++) {
        state = state * 1664525u + 1013904223u;
        x[i] = (float)(state >> 8) / (1 << 23) - 1.0f;
    }
    for (int64_t i = 0; i < n * row; i++) {
        state = state * 1664525u + 1013904223u;
        w[i] = (uint8_t)((state >> 16) % 3 | (state >> 18) % 3 << 2 | (state >> 20) % 3 << 4 | (state >> 22) % 3 << 6);
    }
    for (int64_t i = 0; i < n * groups; i++)
        scale[i] = 0.5f;

    const bt_act_quantize quantize = {.digits = 1,
                                      .x = x,
                                      .q = q,
                                      .scale = q_scale,
                                      .sum = q_sum,
                                      .m = m,
                                      .k = k,
                                      .ldx = k,
                                      .ldq = padded,
                                      .order = BT_ORDER_PLANES};
    const bt_ternary_linear_packed packed = {.x = x,
                                             .w = w,
                                             .scale = scale,
                                             .y = y,
                                             .xp = xp,
                                             .m = m,
                                             .n = n,
                                             .k = k,
                                             .ldx = k,
                                             .ldw = row,
                                             .ldy = n,
                                             .lds = groups,
                                             .group = group,
                                             .ldxp = padded};
    const bt_ternary_linear_w2a8 w2a8 = {.digits = 1,
                                         .q = q,
                                         .q_scale = q_scale,
                                         .q_sum = q_sum,
                                         .w = w,
                                         .scale = scale,
                                         .y = y,
                                         .m = m,
                                         .n = n,
                                         .k = k,
                                         .ldq = padded,
                                         .ldw = row,
                                         .ldy = n,
                                         .lds = groups,
                                         .group = group};
    ((bt_act_quantize_fn *)find("act_quantize", BT_F32, "scalar")->run)(&quantize, 0, m);
    bt_ternary_linear_packed_prepare(&packed, 0, m);
    const int64_t tiles = bt_tiles(m, n);
    if (strcmp(op, "ternary_linear_w2a8") == 0) {
        bt_ternary_linear_w2a8_fn *const run = (bt_ternary_linear_w2a8_fn *)find(op, BT_I8, variant)->run;
        for (int i = 0; i < calls; i++)
            run(&w2a8, 0, tiles);
    } else if (strcmp(op, "ternary_linear_packed") == 0) {
        bt_ternary_linear_packed_fn *const run = (bt_ternary_linear_packed_fn *)find(op, BT_F32, variant)->run;
        for (int i = 0; i < calls; i++)
            run(&packed, 0, tiles);
    } else if (strcmp(op, "act_quantize") == 0) {
        bt_act_quantize_fn *const run = (bt_act_quantize_fn *)find(op, BT_F32, variant)->run;
        for (int i = 0; i < calls; i++)
            run(&quantize, 0, m);
    } else if (strcmp(op, "prepare") == 0) {
        for (int i = 0; i < calls; i++)
            bt_ternary_linear_packed_prepare(&packed, 0, m);
    } else {
        fprintf(stderr, "count_kernel: no such op, %s\n", op);
        return 2;
    }
    return 0;
}
