/* ternary_conv2d_packed of bytes by sdot, 4 rows x 16 positions: a lane is a position, whose four bytes are four
 * columns and meet four codes of a row, which a table makes of one packed byte. */
#include "conv2d_neon.h"

static const uint32_t trits[256] = {BT_TRIT_BYTES};

BT_NEON_INLINE void dot_16(bt_conv_i32 sum, const uint8_t *patch, const uint8_t *const w[BT_CONV_STEP],
                           int64_t quad_begin, int64_t quad_end, int lane) {
    const uint8x16_t flip = vdupq_n_u8(128); /* code + 128 to code */
    int32x4_t acc[BT_CONV_STEP][4];
#pragma GCC unroll 4
    for (int r = 0; r < BT_CONV_STEP; r++)
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++)
            acc[r][v] = vdupq_n_s32(0);
    for (int64_t quad = quad_begin; quad < quad_end; quad++) {
        const uint8_t *at = patch + 4 * BT_CONV_LANES * quad + 4 * lane;
        int8x16_t x[4];
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++)
            x[v] = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(at + 16 * v), flip));
#pragma GCC unroll 4
        for (int r = 0; r < BT_CONV_STEP; r++) {
            const int8x16_t codes = vreinterpretq_s8_u32(vdupq_n_u32(trits[w[r][quad]]));
#pragma GCC unroll 4
            for (int v = 0; v < 4; v++)
                acc[r][v] = vdotq_s32(acc[r][v], x[v], codes);
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < BT_CONV_STEP; r++)
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++)
            vst1q_s32(&sum[r][lane + 4 * v], acc[r][v]);
}

static void dot_i8(bt_conv_i32 sum, const uint8_t *patch, const uint8_t *const w[BT_CONV_STEP], int64_t begin,
                   int64_t end, int vectors) {
    for (int v = 0; v < vectors; v++)
        dot_16(sum, patch, w, begin / 4, bt_div_up(end, 4), 16 * v);
}

bt_status bt_ternary_conv2d_packed_neondot(const bt_ternary_conv2d_packed *p, int64_t tile_begin, int64_t tile_end) {
    static const bt_conv_variant variant = {.dot_i8 = dot_i8, .store = bt_conv_store, .signed_bytes = 1};
    return bt_conv_tiles_run(p, tile_begin, tile_end, &variant);
}
