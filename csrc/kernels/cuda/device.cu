#include "../cuda_device.h"
#include "launch.cuh"

#if !defined(BT_CUDA_ARCHES)
#define BT_CUDA_ARCHES ""
#endif

extern "C" const char *bt_cuda_error_string(bt_status status) {
    return status < BT_ERR_CUDA ? "no CUDA error" : cudaGetErrorString((cudaError_t)(status - BT_ERR_CUDA));
}

extern "C" const char *bt_cuda_arches(void) {
    return BT_CUDA_ARCHES;
}
