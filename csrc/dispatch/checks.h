// Checks, shapes and device plumbing that the ops share. Messages name the thing, both values and what to do.
#pragma once

#include <ATen/core/DimVector.h>
#include <ATen/core/Tensor.h>
#include <c10/core/DeviceGuard.h>
#include <c10/util/Exception.h>

#include <initializer_list>
#include <optional>
#include <string>
#include <utility>

#include "kernel_table.h"
#include "sizes.h"

namespace bittorch {

// The dtype as Python writes it.
std::string dtype_name(const at::Tensor &t);

// The number below `count` that has this name; raises with the names that there are.
int number_of(const std::string &name, int count, const char *(*name_of)(int), const char *what);

// BT_F32, BT_F16, BT_BF16 or BT_I8; `floats` refuses int8.
int element_type(const at::Tensor &t, const char *name);
int float_type(const at::Tensor &t, const char *name);

int device_kind(const at::Tensor &t, const char *name);

// What the checks below take for an argument that may be absent.
inline const at::Tensor *or_null(const std::optional<at::Tensor> &tensor) {
    return tensor ? &*tensor : nullptr;
}

// All tensors that are there on one device; names come in the same order.
void check_same_device(std::initializer_list<std::pair<const char *, const at::Tensor *>> tensors);

// (out_features, ceil(in_features / 4)) uint8.
void check_packed(const at::Tensor &w_packed, int64_t in_features);

void check_bias(const std::optional<at::Tensor> &bias, int64_t out_features);

// Has a product add the bias; `bias`, contiguous and kept by the caller, is undefined where there is none.
template <typename Params> void set_bias(Params &p, const at::Tensor &bias) {
    p.bias = bias.defined() ? bias.const_data_ptr() : nullptr;
    p.bias_type = bias.defined() ? float_type(bias, "bias") : BT_F32;
}

// (in_features,) floating on the device of x; eps positive and finite.
void check_norm(const std::optional<at::Tensor> &weight, double eps, const at::Tensor &x);

// Has the quantiser take the norm of x; `weight`, contiguous and kept by the caller, is undefined where there is none.
void set_norm(bt_act_quantize &p, const at::Tensor &weight, double eps);

// How a kernel finds the scale of row r, column c: scale[r * lds + c / group].
struct ScaleLayout {
    int64_t lds, group;
};
ScaleLayout check_scale(const at::Tensor &scale, int64_t out_features, int64_t in_features);

// x as (rows, last dimension) with unit stride inside a row; a view when that is possible.
at::Tensor as_rows(const at::Tensor &x, const char *name);

// at::empty, whose header alone takes longer to compile than the file of an op.
at::Tensor empty(at::IntArrayRef sizes, const at::TensorOptions &options);

// Sizes of x with the last one replaced.
at::DimVector with_last(const at::Tensor &x, int64_t last);

// How many int8 digits hold activations of 8, 16 or 24 bits.
int digit_count(int64_t bits, const char *name);

// The kernel that `name`, the forced choice or the machine asks for; raises with the list of what there is, or with
// what the problem lacks.
const bt_kernel &find_kernel(bt_op op, int device, int dtype, const std::string &name,
                             const bt_problem *problem = nullptr);

// 10 * major + minor of the current CUDA device's compute capability; 0 for the CPU.
int compute_capability(int device);

// The problem as a CUDA kernel will see it: aligned_rows() makes its rows, so w is at multiples of 16 bytes.
bt_problem problem_of(int64_t m, int64_t n, int64_t k, int64_t group, int digits, bool halves, int device);

// Rows as the kernel wants them: themselves, or a copy in rows that begin at multiples of 16 bytes.
at::Tensor aligned_rows(const at::Tensor &rows, const bt_kernel &kernel);

// Turns a kernel's status into an exception that names the kernel.
void check_status(bt_status status, const bt_kernel &kernel);

// cudaStream_t of the current device's current stream.
void *current_stream();

// Scratch of a CUDA kernel, on the device of a tensor; nothing is allocated for 0 bytes. It may go as soon as the
// kernel is enqueued, because torch reuses memory in the order of the stream.
class Workspace {
  public:
    Workspace(size_t bytes, const at::Tensor &like);
    void *data() const {
        return memory_.defined() ? memory_.mutable_data_ptr() : nullptr;
    }
    int64_t bytes() const {
        return memory_.defined() ? memory_.numel() : 0;
    }

  private:
    at::Tensor memory_;
};

// Scratch of a call: on the stack when it is small, because an allocation costs as much as a small product.
class Scratch {
  public:
    explicit Scratch(int64_t bytes);
    // `count` elements, aligned to 64 bytes.
    template <typename T> T *take(int64_t count) {
        T *const here = reinterpret_cast<T *>(next_);
        next_ += bytes_of<T>(count);
        return here;
    }
    template <typename T> static int64_t bytes_of(int64_t count) {
        return padded_size("bytes of scratch", size_product("bytes of scratch", {count, int64_t{sizeof(T)}}), 64);
    }

  private:
    alignas(64) char small_[16384];
    at::Tensor large_;
    char *next_;
};

} // namespace bittorch
