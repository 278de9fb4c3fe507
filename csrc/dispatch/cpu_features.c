#include "cpu_features.h"

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

#if defined(__x86_64__)
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
    static const char *const names[] = {"avx2", "avx512", "avx512vnni", "neon", "neondot", "neoni8mm"};
    return bit_number >= 0 && bit_number < (int)(sizeof names / sizeof *names) ? names[bit_number] : NULL;
}
