/* What the shim asks the CUDA side besides the kernels. Plain C; the definitions are in cuda/device.cu, and in
 * csrc/dispatch/kernel_table.c those of a build without CUDA. */
#ifndef BT_CUDA_DEVICE_H
#define BT_CUDA_DEVICE_H
#include "bt_common.h"
#ifdef __cplusplus
extern "C" {
#endif

/* The text of a launcher's status; lives as long as the program. */
BT_EXPORT const char *bt_cuda_error_string(bt_status status);

/* 10 * major + minor of the current device's compute capability; 0 in a build without CUDA. */
BT_EXPORT bt_status bt_cuda_sm(int *sm);

#ifdef __cplusplus
}
#endif
#endif
