/* What the x86 files of ternary_conv2d_packed share. */
#ifndef BT_CPU_CONV2D_X86_H
#define BT_CPU_CONV2D_X86_H

#include "conv2d_tile.h"
#include "x86.h"

static void bt_conv_store(void *y, int type, int64_t index, const float *value, int count) {
    int i = 0;
    for (; i + 4 <= count; i += 4)
        bt_store4(y, type, index + i, _mm_loadu_ps(value + i));
    for (; i < count; i++)
        bt_store(y, type, index + i, value[i]);
}

#endif
