/* All kernels in one flat table, made from the lists in csrc/kernels/<op>.h, and the one place that chooses among them.
 *
 * A name is a variant ("avx2"), "auto", or one of two roles: "baseline", the plain definition (scalar, cuda_baseline),
 * and "tiled", the best blocked kernel (cuda_tiled, or the first usable row but scalar on a CPU). A name that begins
 * with '?' is a wish. Precedence: the name in the call, bt_kernel_force(), a wish in the call, bt_kernel_set_default(),
 * then the first row whose needs are met. Only the name in the call must exist; the others count where the device and
 * the type have such a kernel. What a row needs is a set of bits: those of a CPU kernel are met by the machine, those
 * of a CUDA kernel by the device and by the problem. A named or forced kernel whose needs the problem does not meet is
 * an error; a wish or a default then does not count. That decoding pays is no condition for who names the kernel. */
#ifndef BT_KERNEL_TABLE_H
#define BT_KERNEL_TABLE_H

#include "../kernels/kernel_list.h"

#ifdef __cplusplus
extern "C" {
#endif

#define BT_OP_ENUM(op, list) BT_OP_##op,
typedef enum bt_op { BT_OPS(BT_OP_ENUM) BT_OP_COUNT } bt_op;
#undef BT_OP_ENUM

typedef void bt_kernel_fn(void); /* cast back to bt_<op>_fn by the caller, who knows the op */

typedef struct bt_kernel {
    bt_op op;
    int device;      /* BT_CPU or BT_GPU */
    unsigned dtypes; /* BT_SET() of the activation or weight types it takes */
    uint32_t needs;  /* BT_CPU_* and BT_GPU_* bits */
    uint32_t reads;  /* BT_READS_* bits */
    const char *variant;
    bt_kernel_fn *run;
} bt_kernel;

/* A hash of the headers that the shim and the kernels share, made by setup.py: both are of one build where they agree.
 */
extern BT_EXPORT const char bt_interface[];

extern BT_EXPORT const bt_kernel bt_kernels[];
extern BT_EXPORT const int bt_kernel_count;

BT_EXPORT const char *bt_op_name(bt_op op);

/* The op of that name, or BT_OP_COUNT. */
BT_EXPORT bt_op bt_op_find(const char *name);

/* Whether the CPU has what the row needs; a GPU row needs a device of that kind, which its caller has by having a
 * tensor there. */
BT_EXPORT int bt_kernel_usable(const bt_kernel *kernel);

/* A product, as a CUDA kernel may mind it. */
typedef struct bt_problem {
    int64_t m, n, k, ldw, group;
    const void *w;
    int digits; /* rows of activations a token: 1 of floating ones */
    int halves; /* whether activations are fp16 or bf16 */
    int sm;     /* 10 * major + minor of the device's compute capability */
} bt_problem;

/* The BT_GPU_* needs that it meets. */
BT_EXPORT uint32_t bt_problem_offers(const bt_problem *problem);

/* The kernel to run, or NULL when no row fits; name may be NULL for "auto". A pure function of its arguments, the
 * machine and what was forced. Without a problem it is a kernel for every problem, or the named one. */
BT_EXPORT const bt_kernel *bt_pick(bt_op op, int device, int dtype, const bt_problem *problem, const char *name);

/* The row that the name, or bt_kernel_force(), asks for, whatever the problem; NULL when there is none or no demand. */
BT_EXPORT const bt_kernel *bt_kernel_demanded(bt_op op, int device, int dtype, const char *name);

/* What a BT_GPU_* bit stands for, as a message says it. */
BT_EXPORT const char *bt_need_text(uint32_t bit);

/* Sets the choice, or the default, of calls that say "auto"; NULL or "auto" takes it back. Returns 0 when no usable row
 * of the op answers to the name. */
BT_EXPORT int bt_kernel_force(bt_op op, const char *name);
BT_EXPORT int bt_kernel_set_default(bt_op op, const char *name);

#ifdef __cplusplus
}
#endif
#endif
