// Registers the function of an op that library.cpp has the schema of, in the op's own file.
#pragma once

#include <torch/library.h>

// One function serves both devices: it asks the kernel table for the tensor's device.
#define BT_IMPLEMENT(op)                                                                                               \
    TORCH_LIBRARY_IMPL(bittorch, CPU, m) {                                                                             \
        m.impl(#op, &op);                                                                                              \
    }                                                                                                                  \
    TORCH_LIBRARY_IMPL(bittorch, CUDA, m) {                                                                            \
        m.impl(#op, &op);                                                                                              \
    }

// The same for codes and scales, which are not differentiable: autograd looks through the op.
#define BT_IMPLEMENT_CODES(op)                                                                                         \
    BT_IMPLEMENT(op)                                                                                                   \
    TORCH_LIBRARY_IMPL(bittorch, Autograd, m) {                                                                        \
        m.impl(#op, torch::CppFunction::makeFallthrough());                                                            \
    }
