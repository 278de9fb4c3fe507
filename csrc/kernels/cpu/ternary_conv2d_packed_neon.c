/* ternary_conv2d_packed by NEON: a lane is a position.
 *
 *   floats   4 rows x 16 positions; a weight multiplies four positions by its element of a vector
 *   bytes    4 rows x 8 positions; the four bytes of a position have an int16 lane each, which smlal adds to
 *
 * A byte of w adds one product of at most 128 to each int16 lane: WIDEN = 255 of them are 32640 < 2^15. */
#include "conv2d_neon.h"

enum { WIDEN = 255 };

static const float float_trits[256][4] = {BT_TRIT_FLOATS};
static const uint32_t trits[256] = {BT_TRIT_BYTES};

/* Columns past the last one of a row are zeros in the patch, with zero codes. */
BT_NEON_INLINE void dot_16_f32(bt_conv_f32 sum, const float *patch, const uint8_t *const w[BT_CONV_STEP],
                               int64_t quad_begin, int64_t quad_end, int lane) {
    float32x4_t acc[BT_CONV_STEP][4];
#pragma GCC unroll 4
    for (int r = 0; r < BT_CONV_STEP; r++)
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++)
            acc[r][v] = vdupq_n_f32(0.0f);
    for (int64_t quad = quad_begin; quad < quad_end; quad++) {
        const float *at = patch + 4 * BT_CONV_LANES * quad + lane, *weight[BT_CONV_STEP];
#pragma GCC unroll 4
        for (int r = 0; r < BT_CONV_STEP; r++)
            weight[r] = float_trits[w[r][quad]];
#pragma GCC unroll 1 /* with more, gcc 12 copies or spills sums */
        for (int c = 0; c < 4; c++, at += BT_CONV_LANES) {
            float32x4_t x[4];
#pragma GCC unroll 4
            for (int v = 0; v < 4; v++)
                x[v] = vld1q_f32(at + 4 * v);
#pragma GCC unroll 4
            for (int r = 0; r < BT_CONV_STEP; r++)
#pragma GCC unroll 4
                for (int v = 0; v < 4; v++)
                    acc[r][v] = vfmaq_n_f32(acc[r][v], x[v], weight[r][c]);
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < BT_CONV_STEP; r++)
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++)
            vst1q_f32(&sum[r][lane + 4 * v], acc[r][v]);
}

static void dot_f32(bt_conv_f32 sum, const float *patch, const uint8_t *const w[BT_CONV_STEP], int64_t begin,
                    int64_t end, int vectors) {
    for (int v = 0; v < vectors; v++)
        dot_16_f32(sum, patch, w, begin / 4, bt_div_up(end, 4), 16 * v);
}

/* Adds the products of at most WIDEN bytes of each row to 8 lanes of sum. */
BT_NEON_INLINE void add_8(bt_conv_i32 sum, const uint8_t *patch, const uint8_t *const w[BT_CONV_STEP], int64_t begin,
                          int64_t end, int lane) {
    const uint8x16_t flip = vdupq_n_u8(128); /* code + 128 to code */
    int16x8_t acc[BT_CONV_STEP][4];
#pragma GCC unroll 4
    for (int r = 0; r < BT_CONV_STEP; r++)
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++)
            acc[r][v] = vdupq_n_s16(0);
    for (int64_t quad = begin; quad < end; quad++) {
        const uint8_t *at = patch + 4 * BT_CONV_LANES * quad + 4 * lane;
        const int8x16_t x0 = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(at), flip));
        const int8x16_t x1 = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(at + 16), flip));
#pragma GCC unroll 4
        for (int r = 0; r < BT_CONV_STEP; r++) {
            const int8x16_t codes = vreinterpretq_s8_u32(vdupq_n_u32(trits[w[r][quad]]));
            acc[r][0] = vmlal_s8(acc[r][0], vget_low_s8(x0), vget_low_s8(codes));
            acc[r][1] = vmlal_high_s8(acc[r][1], x0, codes);
            acc[r][2] = vmlal_s8(acc[r][2], vget_low_s8(x1), vget_low_s8(codes));
            acc[r][3] = vmlal_high_s8(acc[r][3], x1, codes);
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < BT_CONV_STEP; r++)
#pragma GCC unroll 2
        for (int v = 0; v < 2; v++) {
            const int32x4_t four = vpaddq_s32(vpaddlq_s16(acc[r][2 * v]), vpaddlq_s16(acc[r][2 * v + 1]));
            int32_t *at = &sum[r][lane + 4 * v];
            vst1q_s32(at, vaddq_s32(vld1q_s32(at), four));
        }
}

static void dot_i8(bt_conv_i32 sum, const uint8_t *patch, const uint8_t *const w[BT_CONV_STEP], int64_t begin,
                   int64_t end, int vectors) {
    const int64_t quad_end = bt_div_up(end, 4);
    for (int r = 0; r < BT_CONV_STEP; r++)
        memset(sum[r], 0, (size_t)vectors * 16 * sizeof(int32_t));
    for (int64_t quad = begin / 4; quad < quad_end; quad += WIDEN)
        for (int lane = 0; lane < 16 * vectors; lane += 8)
            add_8(sum, patch, w, quad, quad + WIDEN < quad_end ? quad + WIDEN : quad_end, lane);
}

bt_status bt_ternary_conv2d_packed_neon(const bt_ternary_conv2d_packed *p, int64_t tile_begin, int64_t tile_end) {
    static const bt_conv_variant variant = {
        .dot_f32 = dot_f32, .dot_i8 = dot_i8, .store = bt_conv_store, .signed_bytes = 1};
    return bt_conv_tiles_run(p, tile_begin, tile_end, &variant);
}
