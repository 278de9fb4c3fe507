/* Every usable kernel against the scalar one of its op, and the scalar ones against the plain formulas. */
#include "harness.h"

#include <stdio.h>

int main(void) {
    printf("compared with scalar:");
    for (const bt_kernel *kernel = bt_kernels; kernel < bt_kernels + bt_kernel_count; kernel++)
        if (to_be_compared(kernel, kernel->op))
            printf(" %s_%s", bt_op_name(kernel->op), kernel->variant);
    printf("\n");
    test_half();
    for (at_end = 0; at_end < 2; at_end++) {
        test_ternary_pack();
        test_ternary_quantize();
        test_act_quantize();
        test_ternary_linear_packed();
        test_ternary_linear_w2a8();
    }
    return report();
}
