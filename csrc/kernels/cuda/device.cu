#include "../cuda_device.h"
#include "launch.cuh"

extern "C" const char *bt_cuda_error_string(bt_status status) {
    if (status == BT_ERR_PROBLEM)
        return "the kernel does not take this problem";
    if (status == BT_ERR_WORKSPACE)
        return "too few bytes of workspace";
    return status < BT_ERR_CUDA ? "no CUDA error" : cudaGetErrorString((cudaError_t)(status - BT_ERR_CUDA));
}

extern "C" bt_status bt_cuda_sm(int *sm) {
    int device = 0, major = 0, minor = 0;
    cudaError_t error = cudaGetDevice(&device);
    if (error == cudaSuccess)
        error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    if (error == cudaSuccess)
        error = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
    *sm = 10 * major + minor;
    if (error == cudaSuccess)
        return BT_OK;
    cudaGetLastError(); /* else the next launch would find it and be blamed */
    return (bt_status)(BT_ERR_CUDA + (int)error);
}
