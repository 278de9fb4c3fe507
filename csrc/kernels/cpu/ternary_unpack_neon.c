/* ternary_unpack by NEON, 16 output bytes at a time; unpack_rows.h for the places of their codes. */
#include "neon.h"
#include "unpack_rows.h"

enum { BYTES = 16 };

/* The codes of a vector: 4, 2 or 1 bytes, again and again. */
BT_NEON_INLINE uint8x16_t load_codes(const uint8_t *w, int size) {
    return size == 1   ? vreinterpretq_u8_u32(vdupq_n_u32((uint32_t)bt_unpack_load(w, 4)))
           : size == 2 ? vreinterpretq_u8_u16(vdupq_n_u16((uint16_t)bt_unpack_load(w, 2)))
                       : vdupq_n_u8(*w);
}

BT_NEON_INLINE void fill_vectors(const uint8_t *w, char *y, int64_t begin, int64_t end, const bt_unpack_values *v,
                                 const int size) {
    const uint8x16_t from = vld1q_u8(v->from), bits = vld1q_u8(v->bits);
    const uint8x16_t low = vandq_u8(bits, vdupq_n_u8(0x55)), high = veorq_u8(bits, low);
    const uint8x16_t zero = vreinterpretq_u8_u32(vdupq_n_u32(v->of[0]));
    const uint8x16_t plus = vreinterpretq_u8_u32(vdupq_n_u32(v->of[1]));
    const uint8x16_t minus = vreinterpretq_u8_u32(vdupq_n_u32(v->of[2]));
    int64_t c = begin;
    for (; c + BYTES / size <= end; c += BYTES / size) {
        const uint8x16_t code = vandq_u8(vqtbl1q_u8(load_codes(w + c / 4, size), from), bits);
        const uint8x16_t no_minus = vbslq_u8(vceqq_u8(code, low), plus, zero);
        vst1q_u8((uint8_t *)(y + c * size), vbslq_u8(vceqq_u8(code, high), minus, no_minus));
    }
    bt_unpack_columns(w, y, c, end, v, size);
}

void bt_unpack_fill_neon(const uint8_t *w, char *y, int64_t begin, int64_t end, const bt_unpack_values *v) {
    BT_UNPACK_BY_SIZE(fill_vectors, w, y, begin, end, v);
}

bt_status bt_ternary_unpack_neon(const bt_ternary_unpack *p, int64_t row_begin, int64_t row_end) {
    return bt_unpack_rows(p, row_begin, row_end, bt_unpack_fill_neon);
}
