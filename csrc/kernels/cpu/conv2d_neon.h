/* What the NEON files of ternary_conv2d_packed share. */
#ifndef BT_CPU_CONV2D_NEON_H
#define BT_CPU_CONV2D_NEON_H

#include "conv2d_tile.h"
#include "neon.h"

static void bt_conv_store(void *y, int type, int64_t index, const float *value, int count) {
    int i = 0;
    if (type == BT_F32) {
        memcpy((float *)y + index, value, (size_t)count * sizeof(float));
        return;
    }
    if (type == BT_BF16) {
        for (; i < count; i++) /* integers in C, which the compiler makes vectors of */
            bt_store(y, BT_BF16, index + i, value[i]);
        return;
    }
    for (; i + 4 <= count; i += 4)
        vst1_u16((uint16_t *)y + index + i, vreinterpret_u16_f16(vcvt_f16_f32(vld1q_f32(value + i))));
    for (; i < count; i++)
        bt_store(y, BT_F16, index + i, value[i]);
}

#endif
