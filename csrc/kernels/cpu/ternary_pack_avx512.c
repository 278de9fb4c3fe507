/* ternary_pack in steps of 64 columns. */
#include "pack_rows.h"
#include "x86.h"

enum { STEP = 64 };

/* trit + 1 is 0, 1 or 2, all else is cut to 3: the index of the code. */
BT_ALWAYS_INLINE void pack_step(const int8_t *codes, uint8_t *packed) {
    const __m512i table = _mm512_set1_epi32(0x03010002);
    const __m512i trits = _mm512_loadu_si512(codes);
    const __m512i index = _mm512_min_epu8(_mm512_add_epi8(trits, _mm512_set1_epi8(1)), _mm512_set1_epi8(3));
    _mm_storeu_si128((__m128i *)packed, bt_join4(_mm512_shuffle_epi8(table, index)));
}

bt_status bt_ternary_pack_avx512(const bt_ternary_pack *p, int64_t row_begin, int64_t row_end) {
    return bt_pack_rows(p, row_begin, row_end, STEP, pack_step);
}
