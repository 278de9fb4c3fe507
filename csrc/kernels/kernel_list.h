/* Every op of the library that has kernels, and the list of these: the source of the kernel table, of _C.kernels() and
 * of the test cases. */
#ifndef BT_KERNEL_LIST_H
#define BT_KERNEL_LIST_H

#include "act_quantize.h"
#include "bitplane_matmul.h"
#include "bitplane_pack.h"
#include "block_linear.h"
#include "block_unpack.h"
#include "decode_attention.h"
#include "hadamard.h"
#include "half_linear.h"
#include "linear_i8.h"
#include "rotary_store.h"
#include "ternary_check.h"
#include "ternary_conv2d_packed.h"
#include "ternary_embedding.h"
#include "ternary_from_base3.h"
#include "ternary_from_fields.h"
#include "ternary_linear_packed.h"
#include "ternary_linear_w2a8.h"
#include "ternary_pack.h"
#include "ternary_quantize.h"
#include "ternary_transpose.h"
#include "ternary_unpack.h"
#include "trit_depth_linear.h"
#include "trit_elementwise.h"
#include "trit_reduce.h"

#define BT_OPS(X)                                                                                                      \
    X(ternary_pack, BT_TERNARY_PACK)                                                                                   \
    X(ternary_unpack, BT_TERNARY_UNPACK)                                                                               \
    X(ternary_check, BT_TERNARY_CHECK)                                                                                 \
    X(ternary_transpose, BT_TERNARY_TRANSPOSE)                                                                         \
    X(ternary_quantize, BT_TERNARY_QUANTIZE)                                                                           \
    X(ternary_embedding, BT_TERNARY_EMBEDDING)                                                                         \
    X(act_quantize, BT_ACT_QUANTIZE)                                                                                   \
    X(ternary_linear_packed, BT_TERNARY_LINEAR_PACKED)                                                                 \
    X(ternary_linear_w2a8, BT_TERNARY_LINEAR_W2A8)                                                                     \
    X(ternary_conv2d_packed, BT_TERNARY_CONV2D_PACKED)                                                                 \
    X(hadamard, BT_HADAMARD)                                                                                           \
    X(block_unpack, BT_BLOCK_UNPACK)                                                                                   \
    X(block_linear, BT_BLOCK_LINEAR)                                                                                   \
    X(trit_elementwise, BT_TRIT_ELEMENTWISE)                                                                           \
    X(trit_reduce, BT_TRIT_REDUCE)                                                                                     \
    X(decode_attention, BT_DECODE_ATTENTION)                                                                           \
    X(bitplane_pack, BT_BITPLANE_PACK)                                                                                 \
    X(bitplane_matmul, BT_BITPLANE_MATMUL)                                                                             \
    X(ternary_from_base3, BT_TERNARY_FROM_BASE3)                                                                       \
    X(rotary_store, BT_ROTARY_STORE)                                                                                   \
    X(half_linear, BT_HALF_LINEAR)                                                                                     \
    X(linear_i8, BT_LINEAR_I8)                                                                                         \
    X(trit_depth_linear, BT_TRIT_DEPTH_LINEAR)                                                                         \
    X(ternary_from_fields, BT_TERNARY_FROM_FIELDS)

#endif
