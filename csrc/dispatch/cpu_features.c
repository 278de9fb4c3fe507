#include "cpu_features.h"

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__x86_64__)
#include <cpuid.h>
#endif

/* What the last column of isa.h asks. On x86 the compiler's own test covers cpuid and, through xgetbv, the register
 * state that the OS saves; EAX of leaf 7, subleaf 1, has bits for which not every compiler has names. On ARM, numbers
 * of HWCAP bits, because older C library headers lack the names. */
#if defined(__x86_64__)
#define SUPPORTS(feature) __builtin_cpu_supports(feature)
#define LEAF_7_1(bit) (leaf_7_1() >> (bit) & 1u)
static uint32_t leaf_7_1(void) {
    uint32_t eax = 0, ebx, ecx, edx;
    return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) ? eax : 0;
}
#elif defined(__aarch64__) && defined(__linux__)
#define HWCAP(bit) (getauxval(AT_HWCAP) >> (bit) & 1u)
#define HWCAP2(bit) (getauxval(AT_HWCAP2) >> (bit) & 1u)
#elif defined(__aarch64__) && defined(__APPLE__)
#define HWCAP(bit) ((bit) == 20) /* every Apple silicon core has FEAT_DotProd */
#define HWCAP2(bit) 0
#else
#define HWCAP(bit) 0
#define HWCAP2(bit) 0
#endif

#define ADD(constant, name, machine, base, flags, test)                                                                \
    if (0 BT_ON_##machine(|| ((features & BT_CPU_##base) == BT_CPU_##base && (test))))                                 \
        features |= BT_CPU_##constant;
uint32_t bt_cpu_features(void) {
    uint32_t features = 0;
#if defined(__x86_64__)
    __builtin_cpu_init();
#endif
    BT_ISAS(ADD)
#if defined(BT_EVEX) /* the AVX-VNNI file is compiled as AVX512-VNNI */
    features &= ~(uint32_t)BT_CPU_AVXVNNI;
    features |= features & BT_CPU_AVX512VNNI ? BT_CPU_AVXVNNI : 0;
#endif
    return features;
}

#define NAME(constant, name, ...) #name,
const char *bt_cpu_feature_name(int bit_number) {
    static const char *const names[] = {BT_ISAS(NAME)};
    return bit_number >= 0 && bit_number < BT_ISA_COUNT ? names[bit_number] : NULL;
}
