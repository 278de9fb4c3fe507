#include "../cuda_device.h"
#include "launch.cuh"

extern "C" const char *bt_cuda_error_string(bt_status status) {
    return status < BT_ERR_CUDA ? "no CUDA error" : cudaGetErrorString((cudaError_t)(status - BT_ERR_CUDA));
}
