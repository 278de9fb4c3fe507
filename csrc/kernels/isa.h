/* Every instruction set that a kernel file of cpu/ can be for, a line each: the source of the BT_CPU_* bits, of their
 * names and of what cpu_features.c asks the CPU. setup.py and tests/kernels/Makefile read flags and machine from this
 * text; `name` is the last word of a file's name, and the variant of its kernels.
 *
 *   X(constant, name, machine, what it is added to, "flags of the compiler", whether this CPU and its system have it)
 */
#ifndef BT_ISA_H
#define BT_ISA_H

#define BT_ISAS(X)                                                                                                     \
    X(AVX2, avx2, X86, NONE, "-mavx2 -mfma -mf16c", SUPPORTS("avx2") && SUPPORTS("fma") && SUPPORTS("f16c"))           \
    X(AVX512, avx512, X86, AVX2, "-mavx512f -mavx512bw -mavx512dq -mavx512vl",                                         \
      SUPPORTS("avx512f") && SUPPORTS("avx512bw") && SUPPORTS("avx512dq") && SUPPORTS("avx512vl"))                     \
    X(AVX512VNNI, avx512vnni, X86, AVX512, "-mavx512vnni", SUPPORTS("avx512vnni"))                                     \
    X(NEON, neon, ARM, NONE, "", 1)                                                                                    \
    X(NEONDOT, neondot, ARM, NEON, "-march=armv8.2-a+dotprod", HWCAP(20))                                              \
    X(NEONI8MM, neoni8mm, ARM, NEONDOT, "-march=armv8.2-a+dotprod+i8mm", HWCAP2(13))                                   \
    X(AVXVNNI, avxvnni, X86, AVX2, "-mavxvnni", LEAF_7_1(4))                                                           \
    X(AVX512BF16, avx512bf16, X86, AVX512, "-mavx512bf16", LEAF_7_1(5))                                                \
    X(AVX512POPCNT, avx512popcnt, X86, AVX512, "-mavx512vpopcntdq", SUPPORTS("avx512vpopcntdq"))

/* BT_ISA_<constant>, their numbers; bt_common.h makes the bits of them. */
#define BT_ISA_NUMBER(constant, ...) BT_ISA_##constant,
enum { BT_ISAS(BT_ISA_NUMBER) BT_ISA_COUNT };

#endif
