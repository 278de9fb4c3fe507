/* ternary_pack by NEON, 64 columns at a time: ld4 puts the four codes of a byte into the same lane of four vectors. */
#include "neon.h"
#include "pack_rows.h"

enum { STEP = 64 };

/* trit + 1 is 0, 1 or 2, all else is cut to 3: the index of the code. */
BT_NEON_INLINE uint8x16_t encode(uint8x16_t trits) {
    const uint8x16_t table = {2, 0, 1, 3};
    return vqtbl1q_u8(table, vminq_u8(vaddq_u8(trits, vdupq_n_u8(1)), vdupq_n_u8(3)));
}

BT_NEON_INLINE void pack_step(const int8_t *codes, uint8_t *packed) {
    const uint8x16x4_t trits = vld4q_u8((const uint8_t *)codes);
    const uint8x16_t low = vsliq_n_u8(encode(trits.val[0]), encode(trits.val[1]), 2);
    const uint8x16_t high = vsliq_n_u8(encode(trits.val[2]), encode(trits.val[3]), 2);
    vst1q_u8(packed, vsliq_n_u8(low, high, 4));
}

bt_status bt_ternary_pack_neon(const bt_ternary_pack *p, int64_t row_begin, int64_t row_end) {
    return bt_pack_rows(p, row_begin, row_end, STEP, pack_step);
}
