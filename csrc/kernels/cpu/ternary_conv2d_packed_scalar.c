/* The definition of ternary_conv2d_packed on a CPU, and the padded input that its variants read; see the header. */
#include "conv2d_tile.h"

/* One channel: rows of zeros around rows of zeros, elements, zeros. */
static void prepare_f32(const bt_ternary_conv2d_packed *p, int64_t plane) {
    float *to = (float *)p->xp + plane * bt_conv_plane(p);
    const int64_t row = bt_conv_row(p), pitch = bt_conv_pitch(p), from = plane * p->height * p->width;
    memset(to, 0, (size_t)bt_conv_plane(p) * sizeof *to);
    to += p->pad_h * row;
    for (int64_t ih = 0; ih < p->height; ih++, to += row) {
        if (p->stride_w == 1) {
            bt_load_many(p->x, p->x_type, from + ih * p->width, p->width, to + p->pad_w);
            continue;
        }
        for (int64_t iw = 0; iw < p->width; iw++) {
            const int64_t at = iw + p->pad_w;
            to[at % p->stride_w * pitch + at / p->stride_w] = bt_load(p->x, p->x_type, from + ih * p->width + iw);
        }
    }
}

static void prepare_i8(const bt_ternary_conv2d_packed *p, int64_t plane) {
    uint8_t *to = (uint8_t *)p->xp + plane * bt_conv_plane(p);
    const uint8_t *from = (const uint8_t *)p->x + plane * p->height * p->width;
    const int64_t row = bt_conv_row(p), pitch = bt_conv_pitch(p);
    memset(to, 128, (size_t)bt_conv_plane(p));
    to += p->pad_h * row;
    for (int64_t ih = 0; ih < p->height; ih++, to += row, from += p->width) {
        if (p->stride_w == 1) {
            for (int64_t iw = 0; iw < p->width; iw++)
                to[p->pad_w + iw] = from[iw] ^ 128u;
            continue;
        }
        for (int64_t iw = 0; iw < p->width; iw++) {
            const int64_t at = iw + p->pad_w;
            to[at % p->stride_w * pitch + at / p->stride_w] = from[iw] ^ 128u;
        }
    }
}

bt_status bt_ternary_conv2d_packed_prepare(const bt_ternary_conv2d_packed *p, int64_t begin, int64_t end) {
    for (int64_t plane = begin; plane < end; plane++)
        if (p->x_type == BT_I8)
            prepare_i8(p, plane);
        else
            prepare_f32(p, plane);
    return BT_OK;
}

static void dot_f32(bt_conv_f32 sum, const float *patch, const uint8_t *const w[BT_CONV_STEP], int64_t begin,
                    int64_t end, int vectors) {
    memset(sum, 0, sizeof(bt_conv_f32));
    for (int64_t c = begin; c < end; c++)
        for (int r = 0; r < BT_CONV_STEP; r++) {
            const float code = (float)bt_trit_at(w[r], c);
            for (int i = 0; i < 16 * vectors; i++)
                sum[r][i] += code * patch[BT_CONV_LANES * c + i];
        }
}

static void dot_i8(bt_conv_i32 sum, const uint8_t *patch, const uint8_t *const w[BT_CONV_STEP], int64_t begin,
                   int64_t end, int vectors) {
    memset(sum, 0, sizeof(bt_conv_i32));
    for (int64_t c = begin; c < end; c++)
        for (int r = 0; r < BT_CONV_STEP; r++) {
            const int32_t code = bt_trit_at(w[r], c);
            for (int i = 0; i < 16 * vectors; i++)
                sum[r][i] += code * patch[BT_CONV_LANES * (c & ~(int64_t)3) + 4 * i + (c & 3)];
        }
}

static void store(void *y, int type, int64_t index, const float *value, int count) {
    for (int i = 0; i < count; i++)
        bt_store(y, type, index + i, value[i]);
}

bt_status bt_ternary_conv2d_packed_scalar(const bt_ternary_conv2d_packed *p, int64_t tile_begin, int64_t tile_end) {
    static const bt_conv_variant variant = {dot_f32, dot_i8, store};
    return bt_conv_tiles_run(p, tile_begin, tile_end, &variant);
}
