/* ternary_pack in steps of 32 columns. */
#include "pack_rows.h"
#include "x86.h"

enum { STEP = 32 };

/* trit + 1 is 0, 1 or 2, all else is cut to 3: the index of the code. Multiplications by 1, 4, 16 and 64 join four of
 * them in a 32-bit lane, of which the shuffle gathers the low bytes. */
BT_ALWAYS_INLINE void pack_step(const int8_t *codes, uint8_t *packed) {
    const __m256i table = _mm256_set1_epi32(0x03010002);
    const __m256i gather = _mm256_set1_epi32(0x0c080400);
    const __m256i trits = _mm256_loadu_si256((const __m256i *)codes);
    const __m256i index = _mm256_min_epu8(_mm256_add_epi8(trits, _mm256_set1_epi8(1)), _mm256_set1_epi8(3));
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_shuffle_epi8(table, index), _mm256_set1_epi16(0x0401));
    const __m256i bytes = _mm256_shuffle_epi8(_mm256_madd_epi16(pairs, _mm256_set1_epi32(0x00100001)), gather);
    const __m128i joined = _mm_unpacklo_epi32(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1));
    _mm_storel_epi64((__m128i *)packed, joined);
}

bt_status bt_ternary_pack_avx2(const bt_ternary_pack *p, int64_t row_begin, int64_t row_end) {
    return bt_pack_rows(p, row_begin, row_end, STEP, pack_step);
}
