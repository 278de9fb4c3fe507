/* What the x86 files of ternary_conv2d_packed share. */
#ifndef BT_CPU_CONV2D_X86_H
#define BT_CPU_CONV2D_X86_H

#include "conv2d_tile.h"
#include "x86.h"

/* run(..., vectors) where vectors, 1 to 4, is a constant. */
#define BT_CONV_BY_VECTORS(vectors, run, ...)                                                                          \
    switch (vectors) {                                                                                                 \
    case 1:                                                                                                            \
        run(__VA_ARGS__, 1);                                                                                           \
        break;                                                                                                         \
    case 2:                                                                                                            \
        run(__VA_ARGS__, 2);                                                                                           \
        break;                                                                                                         \
    case 3:                                                                                                            \
        run(__VA_ARGS__, 3);                                                                                           \
        break;                                                                                                         \
    default:                                                                                                           \
        run(__VA_ARGS__, 4);                                                                                           \
    }

static void bt_conv_store(void *y, int type, int64_t index, const float *value, int count) {
    int i = 0;
    for (; i + 4 <= count; i += 4)
        bt_store4(y, type, index + i, _mm_loadu_ps(value + i));
    for (; i < count; i++)
        bt_store(y, type, index + i, value[i]);
}

#endif
