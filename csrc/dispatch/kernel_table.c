#include "kernel_table.h"
#include "../kernels/cuda_device.h"
#include "cpu_features.h"

#include <stdatomic.h>
#include <string.h>

#if !defined(BT_INTERFACE)
#define BT_INTERFACE "" /* in programs that hold both sides */
#endif
const char bt_interface[] = BT_INTERFACE;

#define FUNCTION(op, variant) (bt_kernel_fn *)bt_##op##_##variant
#define ROW(op, device, dtypes, variant, needs)                                                                        \
    {BT_OP_##op, device, dtypes, (needs) & ~BT_READS, (needs) & BT_READS, #variant, FUNCTION(op, variant)},
#define ROWS(op, list) list(ROW)
const bt_kernel bt_kernels[] = {BT_OPS(ROWS)};
const int bt_kernel_count = (int)(sizeof bt_kernels / sizeof *bt_kernels);

#define NAME(op, list) #op,
static const char *const op_names[] = {BT_OPS(NAME)};

/* Point into the table or at a role name: strings that live as long as the program. */
static _Atomic(const char *) forced[BT_OP_COUNT], defaults[BT_OP_COUNT];

const char *bt_op_name(bt_op op) {
    return op_names[op];
}

bt_op bt_op_find(const char *name) {
    int op = 0;
    while (op < BT_OP_COUNT && strcmp(op_names[op], name) != 0)
        op++;
    return (bt_op)op;
}

/* Asked once: cpuid takes microseconds in a virtual machine. */
static uint32_t known_features(void) {
    enum { KNOWN = 1u << 30 };
    static _Atomic uint32_t known;
    uint32_t features = atomic_load_explicit(&known, memory_order_relaxed);
    if (features == 0) {
        features = bt_cpu_features() | KNOWN;
        atomic_store_explicit(&known, features, memory_order_relaxed);
    }
    return features;
}

/* Whether the row can run where these BT_GPU_* needs are met. */
static int fits(const bt_kernel *kernel, uint32_t offers) {
    return (kernel->needs & ~(known_features() | offers)) == 0;
}

int bt_kernel_usable(const bt_kernel *kernel) {
    return fits(kernel, BT_GPU_NEEDS);
}

uint32_t bt_problem_offers(const bt_problem *p) {
    const uint32_t lacks = bt_tensor_lacks(p->m, p->digits, p->k, p->ldw, p->w, p->group);
    const uint32_t slow = bt_unpack_pays(p->m, p->halves, p->sm, lacks) ? 0u : (uint32_t)BT_GPU_UNPACK;
    return BT_GPU_NEEDS & ~lacks & ~slow & ~(p->sm >= 80 ? 0u : (uint32_t)BT_GPU_SM80);
}

const char *bt_need_text(uint32_t bit) {
    switch (bit) {
    case BT_GPU_SM80:
        return "a device of compute capability 8.0";
    case BT_GPU_FEW_COLUMNS:
        return "at most 16 rows of activations, a token of 16 or 24 bits being 2 or 3 of them";
    case BT_GPU_GROUPS:
        return "in_features > 0 and one scale, one a row, or groups that are multiples of 64 up to 1024";
    case BT_GPU_LONG_GROUPS:
        return "in_features > 0 and one scale, one a row, or groups of a multiple of 64 for 8 bits and halves";
    case BT_GPU_UNPACK:
        return "so many tokens that decoding the weight pays";
    default:
        return "rows of w_packed at multiples of 16 bytes";
    }
}

static int is_auto(const char *name) {
    return name == NULL || strcmp(name, "auto") == 0;
}

/* Whether the row answers to the name: "tiled" on a CPU is any blocked variant, and the first usable one is taken. */
static int answers_to(const bt_kernel *kernel, const char *name) {
    if (strcmp(kernel->variant, name) == 0)
        return 1;
    if (kernel->device == BT_GPU)
        return strncmp(kernel->variant, "cuda_", 5) == 0 && strcmp(kernel->variant + 5, name) == 0;
    const int is_scalar = strcmp(kernel->variant, "scalar") == 0;
    return (is_scalar && strcmp(name, "baseline") == 0) || (!is_scalar && strcmp(name, "tiled") == 0);
}

/* First row of the op that fits; device or dtype -1 and name NULL stand for any. */
static const bt_kernel *first_row(bt_op op, int device, int dtype, uint32_t offers, const char *name) {
    for (const bt_kernel *kernel = bt_kernels; kernel < bt_kernels + bt_kernel_count; kernel++)
        if (kernel->op == op && (device < 0 || kernel->device == device) &&
            (dtype < 0 || (kernel->dtypes & BT_SET(dtype))) && fits(kernel, offers) &&
            (name == NULL || answers_to(kernel, name)))
            return kernel;
    return NULL;
}

static int is_wish(const char *name) {
    return name != NULL && name[0] == '?';
}

const bt_kernel *bt_kernel_demanded(bt_op op, int device, int dtype, const char *name) {
    if (is_wish(name) || is_auto(name))
        name = atomic_load_explicit(&forced[op], memory_order_relaxed);
    return is_auto(name) ? NULL : first_row(op, device, dtype, BT_GPU_NEEDS, name);
}

const bt_kernel *bt_pick(bt_op op, int device, int dtype, const bt_problem *problem, const char *name) {
    const uint32_t offers = problem ? bt_problem_offers(problem) : 0;
    const bt_kernel *const demanded = bt_kernel_demanded(op, device, dtype, name);
    if (demanded || !(is_wish(name) || is_auto(name)))
        return demanded && (problem == NULL || fits(demanded, offers | BT_GPU_UNPACK)) ? demanded : NULL;
    const char *const choices[] = {is_wish(name) ? name + 1 : NULL,
                                   atomic_load_explicit(&defaults[op], memory_order_relaxed)};
    for (size_t i = 0; i < sizeof choices / sizeof *choices; i++) {
        const bt_kernel *const row = is_auto(choices[i]) ? NULL : first_row(op, device, dtype, offers, choices[i]);
        if (row)
            return row;
    }
    return first_row(op, device, dtype, offers, NULL);
}

static int set_choice(_Atomic(const char *) *choice, bt_op op, const char *name) {
    static const char *const roles[] = {"baseline", "tiled"};
    const char *lasting = NULL;
    if (!is_auto(name)) {
        const bt_kernel *const row = first_row(op, -1, -1, BT_GPU_NEEDS, name);
        if (row == NULL)
            return 0;
        lasting = row->variant;
        for (size_t i = 0; i < sizeof roles / sizeof *roles; i++)
            if (strcmp(name, roles[i]) == 0)
                lasting = roles[i];
    }
    atomic_store_explicit(choice, lasting, memory_order_relaxed);
    return 1;
}

int bt_kernel_force(bt_op op, const char *name) {
    return set_choice(&forced[op], op, name);
}

int bt_kernel_set_default(bt_op op, const char *name) {
    return set_choice(&defaults[op], op, name);
}

#if !defined(BT_WITH_CUDA)
const char *bt_cuda_error_string(bt_status status) {
    (void)status;
    return "no CUDA kernels in this build";
}

bt_status bt_cuda_sm(int *sm) {
    *sm = 0;
    return BT_OK;
}
#endif
