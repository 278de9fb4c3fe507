/* The emulator itself: it must see what the other tests count on. */
#include "../../csrc/kernels/cuda/launch.cuh"
#include "../../csrc/kernels/cuda_device.h"
#include "test.h"

#include <sys/wait.h>
#include <unistd.h>

static void neighbours(int *out, bool with_barrier) {
    __shared__ int values[64];
    const int t = (int)threadIdx.x;
    values[t] = t;
    if (with_barrier)
        __syncthreads();
    out[t] = values[(t + 1) % 64];
}

static void diverge() {
    if (threadIdx.x < 7)
        __syncthreads();
}

static void meet_elsewhere() {
    if (threadIdx.x < 7)
        __syncthreads();
    else
        __syncthreads();
}

static void number_threads(int *out) {
    const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    out[block * blockDim.x * blockDim.y * blockDim.z + thread]++;
}

static int exit_code_of(void (*kernel)()) {
    const pid_t child = fork();
    if (child == 0) {
        if (!freopen("/dev/null", "w", stderr))
            _Exit(1);
        cusim::launch(dim3(1), dim3(32), kernel);
        _Exit(0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

void test_cusim() {
    int wrong_without = 0;
    for_orders([&](const char *order) {
        int out[64], right[2] = {0, 0};
        for (int with_barrier = 0; with_barrier < 2; with_barrier++) {
            cusim::launch(dim3(2), dim3(64), [&] { neighbours(out, with_barrier); });
            for (int t = 0; t < 64; t++)
                right[with_barrier] += out[t] == (t + 1) % 64;
        }
        check(right[1] == 64, "cusim: a barrier orders writes before reads, %s", order);
        wrong_without += right[0] != 64;
        check(exit_code_of(diverge) == 3, "cusim: a barrier that some threads miss, %s", order);
        check(exit_code_of(meet_elsewhere) == 3, "cusim: threads at different barriers, %s", order);

        std::vector<int> seen(3 * 4 * 5 * 2 * 3 * 4, 0);
        check(BT_LAUNCH(number_threads, dim3(3, 4, 5), dim3(2, 3, 4), nullptr, seen.data()) == BT_OK, "launch");
        int once = 0;
        for (const int times : seen)
            once += times == 1;
        check(once == (int)seen.size(), "cusim: every thread of a grid runs once, %s", order);
    });
    check(wrong_without > 0, "cusim: a missing barrier shows under some order");
    const bt_status status = BT_LAUNCH(number_threads, dim3(1, 65536), dim3(1), nullptr, nullptr);
    check(status == BT_ERR_CUDA + 9, "cusim: a launch beyond the limits gives its error");
    check(strcmp(bt_cuda_error_string(status), "invalid configuration argument") == 0, "bt_cuda_error_string");
    check(strcmp(bt_cuda_error_string(BT_OK), "no CUDA error") == 0, "bt_cuda_error_string of BT_OK");
}
