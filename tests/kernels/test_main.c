/* Every usable kernel against the scalar one of its op, and the scalar ones against the plain formulas.
 * `test_kernels quick`, for emulators, does only the pass with guard pages behind the buffers, and leaves out
 * ternary_quantize where only the scalar kernel would run. `all` fails where a kernel of this architecture cannot run.
 */
#include "harness.h"

#include <stdio.h>
#include <string.h>

static int given(int argc, char **argv, const char *word) {
    for (int i = 1; i < argc; i++)
        if (strcmp(argv[i], word) == 0)
            return 1;
    return 0;
}

static void check_all_usable(void) {
    for (const bt_kernel *kernel = bt_kernels; kernel < bt_kernels + bt_kernel_count; kernel++) {
        set_context("%s %s", bt_op_name(kernel->op), kernel->variant);
        check(kernel->device != BT_CPU || bt_kernel_usable(kernel), "usable on this CPU");
    }
}

int main(int argc, char **argv) {
    const int quick = given(argc, argv, "quick");
    if (given(argc, argv, "all"))
        check_all_usable();
    printf("compared with scalar:");
    for (int op = 0; op < BT_OP_COUNT; op++)
        for (const bt_kernel *kernel = NULL; (kernel = next_compared(kernel, (bt_op)op));)
            printf(" %s_%s", bt_op_name(kernel->op), kernel->variant);
    printf("\n");
    test_half();
    for (at_end = quick; at_end < 2; at_end++) {
#define RUN(op, list)                                                                                                  \
    if (!quick || BT_OP_##op != BT_OP_ternary_quantize || next_compared(NULL, BT_OP_##op))                             \
        test_##op();
        BT_OPS(RUN)
    }
    return report();
}
