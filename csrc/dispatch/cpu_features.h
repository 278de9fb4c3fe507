/* What this CPU and its operating system offer, as the BT_CPU_* bits of isa.h. */
#ifndef BT_CPU_FEATURES_H
#define BT_CPU_FEATURES_H

#include "../kernels/bt_common.h"

#ifdef __cplusplus
extern "C" {
#endif

BT_EXPORT uint32_t bt_cpu_features(void);

/* Name of one BT_CPU_* bit ("avx2"), or NULL when no bit of that number exists. */
BT_EXPORT const char *bt_cpu_feature_name(int bit_number);

#ifdef __cplusplus
}
#endif
#endif
