/* Every kernel of the library, op by op, fastest first: the source of the kernel table, of _C.kernels() and of the test
 * cases. */
#ifndef BT_KERNEL_LIST_H
#define BT_KERNEL_LIST_H

#include "act_quantize.h"
#include "hadamard.h"
#include "ternary_check.h"
#include "ternary_conv2d_packed.h"
#include "ternary_embedding.h"
#include "ternary_linear_packed.h"
#include "ternary_linear_w2a8.h"
#include "ternary_pack.h"
#include "ternary_quantize.h"
#include "ternary_transpose.h"
#include "ternary_unpack.h"

#define BT_OPS(X)                                                                                                      \
    X(ternary_pack)                                                                                                    \
    X(ternary_unpack)                                                                                                  \
    X(ternary_check)                                                                                                   \
    X(ternary_transpose)                                                                                               \
    X(ternary_quantize)                                                                                                \
    X(ternary_embedding)                                                                                               \
    X(act_quantize)                                                                                                    \
    X(ternary_linear_packed)                                                                                           \
    X(ternary_linear_w2a8)                                                                                             \
    X(ternary_conv2d_packed)                                                                                           \
    X(hadamard)

#define BT_ALL_KERNELS(X)                                                                                              \
    BT_TERNARY_PACK(X)                                                                                                 \
    BT_TERNARY_UNPACK(X)                                                                                               \
    BT_TERNARY_CHECK(X)                                                                                                \
    BT_TERNARY_TRANSPOSE(X)                                                                                            \
    BT_TERNARY_QUANTIZE(X)                                                                                             \
    BT_TERNARY_EMBEDDING(X)                                                                                            \
    BT_ACT_QUANTIZE(X)                                                                                                 \
    BT_TERNARY_LINEAR_PACKED(X)                                                                                        \
    BT_TERNARY_LINEAR_W2A8(X)                                                                                          \
    BT_TERNARY_CONV2D_PACKED(X)                                                                                        \
    BT_HADAMARD(X)

#endif
