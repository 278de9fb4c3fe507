#include "cpu_features.h"

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__x86_64__)
#include <cpuid.h>
#endif

#if defined(__x86_64__)
/* EAX of cpuid leaf 7, subleaf 1, for whose bits not every compiler's own test has names; 0 without that subleaf. */
static uint32_t leaf_7_1(void) {
    uint32_t eax = 0, ebx, ecx, edx;
    return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) ? eax : 0;
}

#if defined(BT_EVEX)
static int has_avxvnni(uint32_t features) {
    return (features & BT_CPU_AVX512VNNI) != 0;
}
#else
static int has_avxvnni(uint32_t features) {
    return (features & BT_CPU_AVX2) && (leaf_7_1() >> 4 & 1u);
}
#endif

/* The compiler's own test covers cpuid and, through xgetbv, the register state that the OS saves. */
uint32_t bt_cpu_features(void) {
    uint32_t features = 0;
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
        features |= BT_CPU_AVX2;
    if ((features & BT_CPU_AVX2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        features |= BT_CPU_AVX512;
    if ((features & BT_CPU_AVX512) && __builtin_cpu_supports("avx512vnni"))
        features |= BT_CPU_AVX512VNNI;
    if (has_avxvnni(features))
        features |= BT_CPU_AVXVNNI;
    if ((features & BT_CPU_AVX512) && (leaf_7_1() >> 5 & 1u))
        features |= BT_CPU_AVX512BF16;
    return features;
}
#elif defined(__aarch64__)
uint32_t bt_cpu_features(void) {
    uint32_t features = BT_CPU_NEON;
#if defined(__linux__)
    enum { ASIMDDP = 1 << 20, I8MM = 1 << 13 }; /* HWCAP_ASIMDDP, HWCAP2_I8MM; older C library headers lack the names */
    if (getauxval(AT_HWCAP) & ASIMDDP)
        features |= BT_CPU_NEONDOT;
    if ((features & BT_CPU_NEONDOT) && (getauxval(AT_HWCAP2) & I8MM))
        features |= BT_CPU_NEONI8MM;
#elif defined(__APPLE__)
    features |= BT_CPU_NEONDOT; /* every Apple silicon core has it */
#endif
    return features;
}
#else
uint32_t bt_cpu_features(void) {
    return 0;
}
#endif

const char *bt_cpu_feature_name(int bit_number) {
    static const char *const names[] = {[0] = "avx2",    [1] = "avx512",   [2] = "avx512vnni", [3] = "neon",
                                        [4] = "neondot", [5] = "neoni8mm", [6] = "avxvnni",    [7] = "avx512bf16"};
    return bit_number >= 0 && bit_number < (int)(sizeof names / sizeof *names) ? names[bit_number] : NULL;
}
