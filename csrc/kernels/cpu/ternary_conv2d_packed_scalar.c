/* The definition of ternary_conv2d_packed on a CPU, and the padded input that its variants read; see the header. */
#include "conv2d_tile.h"

/* `count` elements from x[from] on, `step` apart; type and step are constants where that makes a fast loop. */
static inline __attribute__((always_inline)) void copy_typed(const void *restrict x, const int type, int64_t from,
                                                             const int64_t step, int64_t count, void *restrict to) {
    for (int64_t i = 0; i < count; i++)
        if (type == BT_I8)
            ((uint8_t *)to)[i] = ((const uint8_t *)x)[from + i * step] ^ 128u;
        else
            ((float *)to)[i] = bt_load(x, type, from + i * step);
}

static inline __attribute__((always_inline)) void copy_steps(const void *x, const int type, int64_t from, int64_t step,
                                                             int64_t count, void *to) {
    if (step == 1)
        copy_typed(x, type, from, 1, count, to);
    else if (step == 2)
        copy_typed(x, type, from, 2, count, to);
    else
        copy_typed(x, type, from, step, count, to);
}

static void copy(const void *x, int type, int64_t from, int64_t step, int64_t count, void *to) {
    if (type == BT_I8)
        copy_steps(x, BT_I8, from, step, count, to);
    else if (type == BT_F16)
        copy_steps(x, BT_F16, from, step, count, to);
    else if (type == BT_BF16)
        copy_steps(x, BT_BF16, from, step, count, to);
    else
        copy_steps(x, BT_F32, from, step, count, to);
}

/* Whether rows, or columns, whose remainder by `stride` is that of `at` are in any patch. */
static int is_read(int64_t at, int64_t stride, int64_t dilation, int64_t kernel) {
    for (int64_t i = 0; i < kernel; i++)
        if (i * dilation % stride == at % stride)
            return 1;
    return 0;
}

/* One row of x: for every remainder by stride_w the columns that have it. */
static void prepare_row(const bt_ternary_conv2d_packed *p, int64_t from, char *to) {
    const int64_t pitch = bt_conv_pitch(p), size = bt_conv_size(p);
    for (int64_t phase = 0; phase < p->stride_w; phase++) {
        if (!is_read(phase, p->stride_w, p->dilation_w, p->kernel_w))
            continue;
        const int64_t before = p->pad_w - phase, first = before > 0 ? bt_div_up(before, p->stride_w) : 0;
        const int64_t column = first * p->stride_w - before;
        if (column < p->width)
            copy(p->x, p->x_type, from + column, p->stride_w, bt_div_up(p->width - column, p->stride_w),
                 to + (phase * pitch + first) * size);
    }
}

bt_status bt_ternary_conv2d_packed_prepare(const bt_ternary_conv2d_packed *p, int64_t begin, int64_t end) {
    const int64_t size = bt_conv_size(p), row = bt_conv_row(p) * size, bytes = bt_conv_plane(p) * size;
    for (int64_t plane = begin; plane < end; plane++) {
        char *to = (char *)p->xp + plane * bytes;
        memset(to, p->x_type == BT_I8 ? 128 : 0, (size_t)bytes);
        for (int64_t ih = 0; ih < p->height; ih++)
            if (is_read(ih + p->pad_h, p->stride_h, p->dilation_h, p->kernel_h))
                prepare_row(p, (plane * p->height + ih) * p->width, to + (ih + p->pad_h) * row);
    }
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
    static const bt_conv_variant variant = {.dot_f32 = dot_f32, .dot_i8 = dot_i8, .store = store};
    return bt_conv_tiles_run(p, tile_begin, tile_end, &variant);
}
