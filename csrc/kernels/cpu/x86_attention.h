/* What decode_attention's x86 files share. */
#ifndef BT_CPU_X86_ATTENTION_H
#define BT_CPU_X86_ATTENTION_H

#include "x86.h"

#define BT_ATTENTION_INLINE BT_ALWAYS_INLINE

BT_ALWAYS_INLINE __m256 halves_added(__m256 a, __m256 b) {
    return _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
}
BT_ALWAYS_INLINE __m256 pairs_added(__m256 a, __m256 b) {
    const __m256d x = _mm256_castps_pd(a), y = _mm256_castps_pd(b);
    return _mm256_add_ps(_mm256_castpd_ps(_mm256_unpacklo_pd(x, y)), _mm256_castpd_ps(_mm256_unpackhi_pd(x, y)));
}

/* Two keys a step: their vectors become one, until eight sums are left in the order of keys. */
BT_ALWAYS_INLINE void bt_attention_sums(const float *lanes, float *sum) {
#pragma GCC unroll 2
    for (int first = 0; first < 16; first += 8, lanes += 8 * 16) {
        __m256 key[8], four[4];
#pragma GCC unroll 8
        for (int t = 0; t < 8; t++)
            key[t] = _mm256_add_ps(_mm256_load_ps(lanes + 16 * t), _mm256_load_ps(lanes + 16 * t + 8));
#pragma GCC unroll 4
        for (int t = 0; t < 4; t++)
            four[t] = halves_added(key[t], key[t + 4]);
        const __m256 low = pairs_added(four[0], four[1]), high = pairs_added(four[2], four[3]);
        const __m256 even = _mm256_shuffle_ps(low, high, 0x88), odd = _mm256_shuffle_ps(low, high, 0xdd);
        _mm256_storeu_ps(sum + first, _mm256_add_ps(even, odd));
    }
}

#endif
