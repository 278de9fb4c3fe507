/* ternary_conv2d_packed of bytes, 4 rows x 64 positions, vpdpbusd.
 *
 * A lane is a position; its four bytes are four columns of code + 128, unsigned, and meet four codes of a row, which a
 * table turns from one packed byte into four signed bytes for all lanes. */
#include "conv2d_x86.h"

static const uint32_t trits[256] = {BT_TRIT_BYTES};

#if defined(BT_SIMDE)
BT_ALWAYS_INLINE __m512i dot_u8_i8(__m512i acc, __m512i u, __m512i q) {
    return _mm512_add_epi32(acc, bt_join(bt_dot_u8_i8(bt_low(u), bt_low(q)), bt_dot_u8_i8(bt_high(u), bt_high(q))));
}
BT_ALWAYS_INLINE __m512i in_register(__m512i v) {
    return v;
}
#else
/* v, in one register at the end of a pass: gcc 12 copies some sums otherwise. */
BT_ALWAYS_INLINE __m512i in_register(__m512i v) {
    __asm__("" : "+v"(v));
    return v;
}
/* As an instruction, because gcc 12 copies the accumulators around the intrinsic. */
BT_ALWAYS_INLINE __m512i dot_u8_i8(__m512i acc, __m512i u, __m512i q) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(u), "v"(q));
    return acc;
}
#endif

BT_ALWAYS_INLINE void dot_vectors(bt_conv_i32 sum, const uint8_t *patch, const uint8_t *const w[BT_CONV_STEP],
                                  int64_t begin, int64_t end, const int vectors) {
    __m512i acc[BT_CONV_STEP][4];
    BT_UNROLL
    for (int r = 0; r < BT_CONV_STEP; r++) {
        BT_UNROLL
        for (int v = 0; v < vectors; v++)
            acc[r][v] = _mm512_setzero_si512();
    }
    for (int64_t quad = begin / 4; quad < bt_div_up(end, 4); quad++) {
        __m512i codes[BT_CONV_STEP];
        BT_UNROLL
        for (int r = 0; r < BT_CONV_STEP; r++)
            codes[r] = _mm512_set1_epi32((int)trits[w[r][quad]]);
        BT_UNROLL
        for (int v = 0; v < vectors; v++) {
            const __m512i x = _mm512_loadu_si512(patch + 256 * quad + 64 * v);
            BT_UNROLL
            for (int r = 0; r < BT_CONV_STEP; r++)
                acc[r][v] = dot_u8_i8(acc[r][v], x, codes[r]);
        }
        BT_UNROLL
        for (int r = 0; r < BT_CONV_STEP; r++) {
            BT_UNROLL
            for (int v = 0; v < vectors; v++)
                acc[r][v] = in_register(acc[r][v]);
        }
    }
    BT_UNROLL
    for (int r = 0; r < BT_CONV_STEP; r++) {
        BT_UNROLL
        for (int v = 0; v < vectors; v++)
            _mm512_storeu_si512(&sum[r][16 * v], acc[r][v]);
    }
}

static void dot_i8(bt_conv_i32 sum, const uint8_t *patch, const uint8_t *const w[BT_CONV_STEP], int64_t begin,
                   int64_t end, int vectors){BT_BY_COUNT(vectors, dot_vectors, sum, patch, w, begin, end)}

bt_status bt_ternary_conv2d_packed_avx512vnni(const bt_ternary_conv2d_packed *p, int64_t tile_begin, int64_t tile_end) {
    static const bt_conv_variant variant = {.dot_i8 = dot_i8, .store = bt_conv_store};
    return bt_conv_tiles_run(p, tile_begin, tile_end, &variant);
}
