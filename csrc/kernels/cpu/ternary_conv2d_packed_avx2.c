/* ternary_conv2d_packed, 4 rows x 16 positions at a time: a lane is a position.
 *
 * Bytes: vpmaddubsw multiplies code + 128, unsigned, by signed codes: a sum of two is at most 2 * 255 = 510, and
 * FLUSH = 64 of them are 32640, inside int16. */
#include "conv2d_x86.h"

enum { FLUSH = 64 };

static const uint32_t trits[256] = {BT_TRIT_BYTES};
static const float float_trits[256][4] = {BT_TRIT_FLOATS};

BT_ALWAYS_INLINE void dot_16(bt_conv_i32 sum, const uint8_t *patch, const uint8_t *const w[BT_CONV_STEP],
                             int64_t quad_begin, int64_t quad_end, int lane) {
    const __m256i one = _mm256_set1_epi16(1);
    __m256i wide[BT_CONV_STEP][2];
    BT_UNROLL
    for (int r = 0; r < BT_CONV_STEP; r++)
        wide[r][0] = wide[r][1] = _mm256_setzero_si256();
    for (int64_t begin = quad_begin; begin < quad_end; begin += FLUSH) {
        const int64_t end = quad_end - begin < FLUSH ? quad_end : begin + FLUSH;
        __m256i acc[BT_CONV_STEP][2];
        BT_UNROLL
        for (int r = 0; r < BT_CONV_STEP; r++)
            acc[r][0] = acc[r][1] = _mm256_setzero_si256();
        for (int64_t quad = begin; quad < end; quad++) {
            const uint8_t *at = patch + 256 * quad + 4 * lane;
            const __m256i x0 = _mm256_loadu_si256((const __m256i *)at);
            const __m256i x1 = _mm256_loadu_si256((const __m256i *)(at + 32));
            BT_UNROLL
            for (int r = 0; r < BT_CONV_STEP; r++) {
                const __m256i codes = _mm256_set1_epi32((int)trits[w[r][quad]]);
                acc[r][0] = _mm256_add_epi16(acc[r][0], _mm256_maddubs_epi16(x0, codes));
                acc[r][1] = _mm256_add_epi16(acc[r][1], _mm256_maddubs_epi16(x1, codes));
            }
        }
        BT_UNROLL
        for (int r = 0; r < BT_CONV_STEP; r++) {
            wide[r][0] = _mm256_add_epi32(wide[r][0], _mm256_madd_epi16(acc[r][0], one));
            wide[r][1] = _mm256_add_epi32(wide[r][1], _mm256_madd_epi16(acc[r][1], one));
        }
    }
    BT_UNROLL
    for (int r = 0; r < BT_CONV_STEP; r++) {
        _mm256_storeu_si256((__m256i *)&sum[r][lane], wide[r][0]);
        _mm256_storeu_si256((__m256i *)&sum[r][lane + 8], wide[r][1]);
    }
}

static void dot_i8(bt_conv_i32 sum, const uint8_t *patch, const uint8_t *const w[BT_CONV_STEP], int64_t begin,
                   int64_t end, int vectors) {
    for (int v = 0; v < vectors; v++)
        dot_16(sum, patch, w, begin / 4, bt_div_up(end, 4), 16 * v);
}

/* Columns past the last one of a row are zeros in the patch, with zero codes. */
BT_ALWAYS_INLINE void dot_16_f32(bt_conv_f32 sum, const float *patch, const uint8_t *const w[BT_CONV_STEP],
                                 int64_t quad_begin, int64_t quad_end, int lane) {
    __m256 acc[BT_CONV_STEP][2];
    BT_UNROLL
    for (int r = 0; r < BT_CONV_STEP; r++)
        acc[r][0] = acc[r][1] = _mm256_setzero_ps();
    for (int64_t quad = quad_begin; quad < quad_end; quad++) {
        const float *at = patch + 4 * BT_CONV_LANES * quad + lane, *weight[BT_CONV_STEP];
        BT_UNROLL
        for (int r = 0; r < BT_CONV_STEP; r++)
            weight[r] = float_trits[w[r][quad]];
#pragma GCC unroll 2 /* of four columns a pass gcc 12 copies sums */
        for (int c = 0; c < 4; c++, at += BT_CONV_LANES) {
            const __m256 x0 = _mm256_loadu_ps(at), x1 = _mm256_loadu_ps(at + 8);
            BT_UNROLL
            for (int r = 0; r < BT_CONV_STEP; r++) {
                const __m256 one = _mm256_set1_ps(weight[r][c]);
                acc[r][0] = _mm256_fmadd_ps(one, x0, acc[r][0]);
                acc[r][1] = _mm256_fmadd_ps(one, x1, acc[r][1]);
            }
        }
    }
    BT_UNROLL
    for (int r = 0; r < BT_CONV_STEP; r++) {
        _mm256_storeu_ps(&sum[r][lane], acc[r][0]);
        _mm256_storeu_ps(&sum[r][lane + 8], acc[r][1]);
    }
}

static void dot_f32(bt_conv_f32 sum, const float *patch, const uint8_t *const w[BT_CONV_STEP], int64_t begin,
                    int64_t end, int vectors) {
    for (int v = 0; v < vectors; v++)
        dot_16_f32(sum, patch, w, begin / 4, bt_div_up(end, 4), 16 * v);
}

bt_status bt_ternary_conv2d_packed_avx2(const bt_ternary_conv2d_packed *p, int64_t tile_begin, int64_t tile_end) {
    static const bt_conv_variant variant = {.dot_f32 = dot_f32, .dot_i8 = dot_i8, .store = bt_conv_store};
    return bt_conv_tiles_run(p, tile_begin, tile_end, &variant);
}
