/* What the counts of x86 share: the sums of the lanes of words of 32 or 64 bytes. BT_WORD_BYTES is defined before. */
#ifndef BT_CPU_X86_COUNTS_H
#define BT_CPU_X86_COUNTS_H

#include "trit_words.h"
#include "x86.h"

BT_ALWAYS_INLINE void bt_totals(const bt_word *counts, int32_t *sums) {
#if BT_WORD_BYTES == 64
    __m256i c[4];
    for (int i = 0; i < 4; i++)
        c[i] = _mm256_add_epi64(bt_low((__m512i)counts[i]), bt_high((__m512i)counts[i]));
#else
    const __m256i *const c = (const __m256i *)counts;
#endif
    const __m256i low = _mm256_add_epi64(_mm256_unpacklo_epi64(c[0], c[1]), _mm256_unpackhi_epi64(c[0], c[1]));
    const __m256i high = _mm256_add_epi64(_mm256_unpacklo_epi64(c[2], c[3]), _mm256_unpackhi_epi64(c[2], c[3]));
    const __m256i both =
        _mm256_castps_si256(_mm256_shuffle_ps(_mm256_castsi256_ps(low), _mm256_castsi256_ps(high), 0x88));
    const __m128i all = _mm_add_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1));
    _mm_storeu_si128((__m128i *)sums, all);
}

#endif
