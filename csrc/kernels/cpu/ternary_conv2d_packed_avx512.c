/* ternary_conv2d_packed of floats, 4 rows x 64 positions: a lane is a position, and a weight is one for all lanes. */
#include "conv2d_x86.h"

static const float trits[256][4] = {BT_TRIT_FLOATS};

/* A column for each weight of a byte; `weight` holds those of the rows. */
BT_ALWAYS_INLINE void add_column(__m512 acc[BT_CONV_STEP][4], const float *patch,
                                 const float *const weight[BT_CONV_STEP], int c, const int vectors) {
    __m512 x[4];
    BT_UNROLL
    for (int v = 0; v < vectors; v++)
        x[v] = _mm512_loadu_ps(patch + BT_CONV_LANES * c + 16 * v);
    BT_UNROLL
    for (int r = 0; r < BT_CONV_STEP; r++) {
        const __m512 one = _mm512_set1_ps(weight[r][c]);
        BT_UNROLL
        for (int v = 0; v < vectors; v++)
            acc[r][v] = _mm512_fmadd_ps(one, x[v], acc[r][v]);
    }
}

BT_ALWAYS_INLINE void add_quad(__m512 acc[BT_CONV_STEP][4], const float *patch, const uint8_t *const w[BT_CONV_STEP],
                               int64_t quad, const int vectors) {
    const float *at = patch + 4 * BT_CONV_LANES * quad, *weight[BT_CONV_STEP];
    BT_UNROLL
    for (int r = 0; r < BT_CONV_STEP; r++)
        weight[r] = trits[w[r][quad]];
    if (vectors > 1) { /* of more columns a pass gcc 12 copies sums */
#pragma GCC unroll 1
        for (int c = 0; c < 4; c++)
            add_column(acc, at, weight, c, vectors);
    } else {
        BT_UNROLL
        for (int c = 0; c < 4; c++)
            add_column(acc, at, weight, c, vectors);
    }
}

/* Columns past the last one of a row are zeros in the patch, with zero codes. */
BT_ALWAYS_INLINE void dot_vectors(bt_conv_f32 sum, const float *patch, const uint8_t *const w[BT_CONV_STEP],
                                  int64_t begin, int64_t end, const int vectors) {
    __m512 acc[BT_CONV_STEP][4];
    BT_UNROLL
    for (int r = 0; r < BT_CONV_STEP; r++) {
        BT_UNROLL
        for (int v = 0; v < vectors; v++)
            acc[r][v] = _mm512_setzero_ps();
    }
    for (int64_t quad = begin / 4; quad < bt_div_up(end, 4); quad++)
        add_quad(acc, patch, w, quad, vectors);
    BT_UNROLL
    for (int r = 0; r < BT_CONV_STEP; r++) {
        BT_UNROLL
        for (int v = 0; v < vectors; v++)
            _mm512_storeu_ps(&sum[r][16 * v], acc[r][v]);
    }
}

static void dot_f32(bt_conv_f32 sum, const float *patch, const uint8_t *const w[BT_CONV_STEP], int64_t begin,
                    int64_t end, int vectors){BT_BY_COUNT(vectors, dot_vectors, sum, patch, w, begin, end)}

bt_status bt_ternary_conv2d_packed_avx512(const bt_ternary_conv2d_packed *p, int64_t tile_begin, int64_t tile_end) {
    static const bt_conv_variant variant = {.dot_f32 = dot_f32, .store = bt_conv_store};
    return bt_conv_tiles_run(p, tile_begin, tile_end, &variant);
}
