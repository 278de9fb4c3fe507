#include "checks.h"

#include "../kernels/cuda_device.h"

#include <ATen/ops/empty.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/version.h>

// c10::Stream::native_handle() came with torch 2.11. Before, a stream takes CUDA's headers, which only a CUDA torch
// goes with.
#define BT_STREAM_HANDLE (TORCH_VERSION_MAJOR > 2 || TORCH_VERSION_MINOR >= 11)
#if !BT_STREAM_HANDLE && defined(BT_CUDA_TORCH)
#include <c10/cuda/CUDAStream.h>
#endif

#include <cmath>
#include <sstream>

namespace bittorch {

std::string dtype_name(const at::Tensor &t) {
    return std::string(c10::getDtypeNames(t.scalar_type()).first);
}

int number_of(const std::string &name, int count, const char *(*name_of)(int), const char *what) {
    std::string known;
    for (int i = 0; i < count; i++) {
        if (name == name_of(i))
            return i;
        known += std::string(i ? ", " : "") + name_of(i);
    }
    TORCH_CHECK_VALUE(false, what, " must be one of ", known, ", got '", name, "'");
}

int element_type(const at::Tensor &t, const char *name) {
    switch (t.scalar_type()) {
    case at::kFloat:
        return BT_F32;
    case at::kHalf:
        return BT_F16;
    case at::kBFloat16:
        return BT_BF16;
    case at::kChar:
        return BT_I8;
    default:
        TORCH_CHECK_TYPE(false, name, " must be float32, float16, bfloat16 or int8, got ", dtype_name(t));
    }
}

int float_type(const at::Tensor &t, const char *name) {
    const at::ScalarType type = t.scalar_type();
    TORCH_CHECK_TYPE(type == at::kFloat || type == at::kHalf || type == at::kBFloat16, name,
                     " must be float32, float16 or bfloat16, got ", dtype_name(t));
    return element_type(t, name);
}

int device_kind(const at::Tensor &t, const char *name) {
    if (t.device().is_cpu())
        return BT_CPU;
    TORCH_CHECK(t.device().is_cuda(), name, " must be on a cpu or cuda device, got ", t.device());
    return BT_GPU;
}

void check_same_device(std::initializer_list<std::pair<const char *, const at::Tensor *>> tensors) {
    const auto &[first_name, first] = *tensors.begin();
    for (const auto &[name, tensor] : tensors)
        TORCH_CHECK(!tensor || !tensor->defined() || tensor->device() == first->device(), first_name, " is on ",
                    first->device(), " but ", name, " is on ", tensor->device(), "; move one of them with .to()");
}

void check_packed(const at::Tensor &w_packed, int64_t in_features) {
    TORCH_CHECK_TYPE(w_packed.scalar_type() == at::kByte, "w_packed must be uint8, got ", dtype_name(w_packed));
    TORCH_CHECK_VALUE(in_features >= 0, "in_features must not be negative, got ", in_features);
    const int64_t bytes = div_up(in_features, 4);
    TORCH_CHECK_VALUE(w_packed.dim() == 2 && w_packed.size(1) == bytes, "w_packed must be (out_features, ", bytes,
                      ") uint8 for in_features=", in_features, ", got ", w_packed.sizes());
}

void check_bias(const std::optional<at::Tensor> &bias, int64_t out_features) {
    if (!bias)
        return;
    float_type(*bias, "bias");
    TORCH_CHECK_VALUE(bias->dim() == 1 && bias->size(0) == out_features, "bias must be (", out_features,
                      ",) for out_features=", out_features, ", got ", bias->sizes());
}

void check_norm(const std::optional<at::Tensor> &weight, double eps, const at::Tensor &x) {
    if (!weight)
        return;
    float_type(*weight, "norm_weight");
    float_type(x, "x with norm_weight");
    check_same_device({{"x", &x}, {"norm_weight", &*weight}});
    TORCH_CHECK_VALUE(x.dim() >= 1 && weight->dim() == 1 && weight->size(0) == x.size(-1), "norm_weight must be (",
                      x.dim() >= 1 ? x.size(-1) : 0, ",), one a column of x, got ", weight->sizes());
    TORCH_CHECK_VALUE(eps > 0 && std::isfinite(eps), "norm_eps must be positive and finite, got ", eps);
}

void set_norm(bt_act_quantize &p, const at::Tensor &weight, double eps) {
    if (!weight.defined())
        return;
    p.norm_weight = weight.const_data_ptr();
    p.norm_type = float_type(weight, "norm_weight"), p.norm_eps = eps;
}

ScaleLayout check_scale(const at::Tensor &scale, int64_t out_features, int64_t in_features) {
    TORCH_CHECK_TYPE(scale.scalar_type() == at::kFloat, "scale must be float32, got ", dtype_name(scale));
    if (scale.dim() == 1 && scale.size(0) == 1)
        return {0, in_features};
    if (scale.dim() == 1 && scale.size(0) == out_features)
        return {1, in_features};
    TORCH_CHECK_VALUE(scale.dim() == 2 && scale.size(0) == out_features && scale.size(1) > 0,
                      "scale must be (1,), (out_features,) or (out_features, in_features / group_size) with "
                      "out_features=",
                      out_features, ", got ", scale.sizes());
    const int64_t groups = scale.size(1);
    if (groups == 1)
        return {1, in_features};
    TORCH_CHECK_VALUE(in_features % groups == 0 && in_features / groups % 4 == 0, "scale has ", groups,
                      " groups a row, which do not cut in_features=", in_features, " into equal multiples of 4");
    return {groups, in_features / groups};
}

at::Tensor as_rows(const at::Tensor &x, const char *name) {
    TORCH_CHECK_VALUE(x.dim() >= 1, name, " must have at least one dimension, got a scalar");
    const int64_t columns = x.size(-1);
    if (x.dim() == 2 && (columns <= 1 || x.stride(1) == 1))
        return x;
    int64_t rows = 1; // the product of all sizes but the last, which torch has not checked where the last one is 0
    for (int64_t d = 0; d < x.dim() - 1; d++)
        rows = size_product(name, {rows, x.size(d)});
    at::Tensor flat = x.reshape({rows, columns});
    return columns > 1 && flat.stride(1) != 1 ? flat.contiguous() : flat;
}

at::Tensor empty(at::IntArrayRef sizes, const at::TensorOptions &options) {
    return at::empty(sizes, options);
}

at::DimVector with_last(const at::Tensor &x, int64_t last) {
    at::DimVector sizes(x.sizes());
    sizes.back() = last;
    return sizes;
}

int digit_count(int64_t bits, const char *name) {
    TORCH_CHECK_VALUE(bits == 8 || bits == 16 || bits == 24, name, " must be 8, 16 or 24, got ", bits);
    return static_cast<int>(bits / 8);
}

static std::string usable_variants(bt_op op, int device, int dtype) {
    std::ostringstream list;
    for (int i = 0; i < bt_kernel_count; i++) {
        const bt_kernel &k = bt_kernels[i];
        if (k.op == op && k.device == device && (k.dtypes & BT_SET(dtype)) && bt_kernel_usable(&k))
            list << k.variant << ", ";
    }
    return list.str() + "baseline, tiled, auto";
}

// What a kernel needs and the problem does not offer, with the problem's values.
static std::string refusal(const bt_kernel &kernel, const bt_problem &p) {
    std::ostringstream text;
    const char *join = " needs ";
    for (uint32_t lacks = kernel.needs & BT_GPU_NEEDS & ~bt_problem_offers(&p); lacks; lacks &= lacks - 1) {
        text << join << bt_need_text(lacks & ~(lacks - 1));
        join = ", and ";
    }
    text << "; got " << p.m << " tokens of " << 8 * p.digits << " bits, in_features=" << p.k << ", out_features=" << p.n
         << ", groups of " << p.group << ", compute capability " << p.sm / 10 << '.' << p.sm % 10;
    return text.str();
}

const bt_kernel &find_kernel(bt_op op, int device, int dtype, const std::string &name, const bt_problem *problem) {
    const bt_kernel *kernel = bt_pick(op, device, dtype, problem, name.c_str());
    TORCH_CHECK_NOT_IMPLEMENTED(kernel || bt_pick(op, device, dtype, nullptr, "baseline"), bt_op_name(op), " has no ",
                                device == BT_GPU ? "cuda" : "cpu",
                                " kernel in this build; rebuild bittorch where nvcc is found (BITTORCH_CUDA=1), or "
                                "move the tensors to the cpu");
    const bt_kernel *demanded = kernel ? nullptr : bt_kernel_demanded(op, device, dtype, name.c_str());
    TORCH_CHECK_VALUE(!demanded, bt_op_name(op), " kernel '", demanded->variant, "'", refusal(*demanded, *problem));
    TORCH_CHECK_VALUE(kernel, bt_op_name(op), " has no kernel '", name, "' here; one of ",
                      usable_variants(op, device, dtype));
    return *kernel;
}

int compute_capability(int device) {
    int sm = 0;
    if (device == BT_GPU) {
        const bt_status status = bt_cuda_sm(&sm);
        TORCH_CHECK(status == BT_OK, "cannot ask the CUDA device what it is: ", bt_cuda_error_string(status));
    }
    return sm;
}

bt_problem problem_of(int64_t m, int64_t n, int64_t k, int64_t group, int digits, bool halves, int device) {
    size_product("rows of activations", {m, digits});
    bt_problem p{};
    p.m = m, p.n = n, p.k = k, p.group = group, p.digits = digits, p.halves = halves;
    p.ldw = size_product("bytes of a packed row", {div_up(k, 64), 16});
    p.sm = compute_capability(device);
    return p;
}

at::Tensor aligned_rows(const at::Tensor &rows, const bt_kernel &kernel) {
    if (!(kernel.needs & BT_GPU_ALIGNED_ROWS) || rows.numel() == 0)
        return rows;
    const int64_t step = 16 / rows.element_size();
    if (reinterpret_cast<uintptr_t>(rows.const_data_ptr()) % 16 == 0 && rows.stride(0) % step == 0)
        return rows;
    const int64_t columns = rows.size(1);
    const at::Tensor padded = empty({rows.size(0), padded_size("columns", columns, step)}, rows.options());
    return padded.narrow(1, 0, columns).copy_(rows);
}

void check_status(bt_status status, const bt_kernel &kernel) {
    if (status == BT_OK)
        return;
    // A launch gives the first, raising the shared memory of a kernel may give the second.
    constexpr bt_status no_kernel_image = BT_ERR_CUDA + 209, invalid_device_function = BT_ERR_CUDA + 98;
    if (status == no_kernel_image || status == invalid_device_function) {
        const int sm = compute_capability(BT_GPU);
        TORCH_CHECK(false, "this build of bittorch has no code for a device of compute capability ", sm / 10, '.',
                    sm % 10, "; rebuild with TORCH_CUDA_ARCH_LIST='", sm / 10, '.', sm % 10, "'");
    }
    TORCH_CHECK(false, "bt_", bt_op_name(kernel.op), "_", kernel.variant, " failed: ", bt_cuda_error_string(status));
}

Workspace::Workspace(size_t bytes, const at::Tensor &like) {
    if (bytes)
        memory_ = empty({static_cast<int64_t>(bytes)}, like.options().dtype(at::kByte));
}

Scratch::Scratch(int64_t bytes) : next_(small_) {
    if (bytes <= static_cast<int64_t>(sizeof small_))
        return;
    large_ = empty({bytes}, at::kByte); // 64-byte aligned, as all memory of torch's CPU allocator
    next_ = static_cast<char *>(large_.mutable_data_ptr());
}

void *current_stream() {
#if BT_STREAM_HANDLE
    const c10::impl::VirtualGuardImpl cuda(at::kCUDA);
    return cuda.getStream(cuda.getDevice()).native_handle();
#elif defined(BT_CUDA_TORCH)
    return c10::cuda::getCurrentCUDAStream().stream();
#else
    TORCH_CHECK(false, "this build of bittorch has no CUDA streams: it was built against a CPU-only torch before 2.11");
#endif
}

} // namespace bittorch
