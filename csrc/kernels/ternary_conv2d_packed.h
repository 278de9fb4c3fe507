/* ternary_conv2d_packed: a 2-d convolution with packed ternary weights.
 *
 *   y[s][r][o] = cast( sum_g fl( dot_g(s, r, o) * scale[r * lds + g] ) + bias[r] )              floating activations
 *   y[s][r][o] = the epilogue of ternary_linear_w2a8.h, with q_scale[s] or q_step[s]            int8 codes or digits
 *   dot_g = sum over the columns c of scale group g, in rising order, of code(r, c) * patch(s, o, c)
 *
 * o = oh * out_w + ow is an output position. Column c = (channel * kernel_h + i) * kernel_w + j of row r stands for a
 * channel of the conv group of r, and patch(s, o, c) is element (oh * stride_h + i * dilation_h - pad_h, ow * stride_w
 * + j * dilation_w - pad_w) of it, or 0 outside.
 *
 * Floating sums are single fp32 chains, and code * x is exact, so a fused multiply-add agrees with two operations;
 * integers are exact. So every variant, batch, tile and thread count gives the same bits. Zero codes multiply too.
 * scale: as in ternary_linear_packed.h, `group` columns a scale, a multiple of 4 or k.
 *
 * bt_ternary_conv2d_packed_prepare() writes the zero-padded input to xp, as fp32, or as unsigned bytes code + 128.
 * The columns of a padded row are split by their remainder by stride_w, so that neighbours among output positions are
 * neighbours in xp whatever the stride:
 *
 *   padded (channel, ih, iw)  ->  xp[((channel * padded_h + ih) * stride_w + iw % stride_w) * pitch + iw / stride_w]
 *
 * A tile is BT_CONV_POSITIONS output positions by BT_CONV_ROWS rows of one group; consecutive tiles share positions. */
#ifndef BT_TERNARY_CONV2D_PACKED_H
#define BT_TERNARY_CONV2D_PACKED_H
#include "bt_common.h"
#ifdef __cplusplus
extern "C" {
#endif

enum { BT_CONV_POSITIONS = 64, BT_CONV_ROWS = 64, BT_CONV_SLACK = 32, BT_CONV_MAX_K = 1 << 22 };

typedef struct bt_ternary_conv2d_packed {
    const void *x;        /* digits * samples images of channels x height x width, of type x_type */
    const float *q_scale; /* [samples], BT_I8 with one digit */
    const double *q_step; /* [samples], BT_I8 with more digits */
    const uint8_t *w;     /* n rows of ceil(k/4), ldw bytes apart; n / groups rows a group */
    const float *scale;   /* as above */
    const void *bias;     /* NULL, or [n] of type bias_type */
    void *y;              /* samples x n x out_h x out_w, of type y_type */
    void *xp;             /* digits * samples images of bt_conv_image() elements, and BT_CONV_SLACK more */
    void *patch;          /* scratch of the calling thread, bt_conv_patch_bytes() */
    int64_t samples, channels, height, width, n, k; /* k = channels / groups * kernel_h * kernel_w */
    int64_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, out_h, out_w, groups;
    int64_t ldw, lds, group;
    int x_type, y_type, bias_type, digits; /* digits: 1 for floats */
    void *stream;
} bt_ternary_conv2d_packed;

typedef bt_status bt_ternary_conv2d_packed_fn(const bt_ternary_conv2d_packed *p, int64_t tile_begin, int64_t tile_end);

/* Fills planes [begin, end) of xp, a plane being a channel of an image; to be done for all before any tile runs. */
BT_EXPORT bt_status bt_ternary_conv2d_packed_prepare(const bt_ternary_conv2d_packed *p, int64_t begin, int64_t end);

static inline int64_t bt_conv_pitch(const bt_ternary_conv2d_packed *p) {
    return bt_div_up(p->width + 2 * p->pad_w, p->stride_w);
}

/* Elements of a padded row, of a padded channel, of a padded image. */
static inline int64_t bt_conv_row(const bt_ternary_conv2d_packed *p) {
    return p->stride_w * bt_conv_pitch(p);
}

static inline int64_t bt_conv_plane(const bt_ternary_conv2d_packed *p) {
    return (p->height + 2 * p->pad_h) * bt_conv_row(p);
}

static inline int64_t bt_conv_image(const bt_ternary_conv2d_packed *p) {
    return p->channels * bt_conv_plane(p);
}

/* Bytes of an element of xp and of a patch. */
static inline int64_t bt_conv_size(const bt_ternary_conv2d_packed *p) {
    return p->x_type == BT_I8 ? 1 : 4;
}

/* The patches of a tile: whole quads of columns for each digit. */
static inline int64_t bt_conv_patch_elements(const bt_ternary_conv2d_packed *p) {
    return bt_div_up(p->k, 4) * 4 * BT_CONV_POSITIONS;
}

static inline int64_t bt_conv_patch_bytes(const bt_ternary_conv2d_packed *p) {
    return (p->digits * bt_conv_patch_elements(p) + BT_CONV_SLACK) * bt_conv_size(p);
}

typedef struct bt_conv_tile {
    int64_t sample, group, position; /* position: the first of the tile */
    int64_t r0, r1;                  /* rows of w */
    int positions;
} bt_conv_tile;

static inline int64_t bt_conv_tiles(const bt_ternary_conv2d_packed *p) {
    return p->samples * p->groups * bt_div_up(p->out_h * p->out_w, BT_CONV_POSITIONS) *
           bt_div_up(p->n / p->groups, BT_CONV_ROWS);
}

static inline bt_conv_tile bt_conv_tile_at(const bt_ternary_conv2d_packed *p, int64_t index) {
    const int64_t rows = p->n / p->groups, all = p->out_h * p->out_w;
    const int64_t blocks = bt_div_up(rows, BT_CONV_ROWS), across = bt_div_up(all, BT_CONV_POSITIONS);
    const int64_t block = index % blocks, patch = index / blocks;
    bt_conv_tile t;
    t.group = patch / across % p->groups;
    t.sample = patch / across / p->groups;
    t.position = patch % across * BT_CONV_POSITIONS;
    t.positions = all - t.position < BT_CONV_POSITIONS ? (int)(all - t.position) : (int)BT_CONV_POSITIONS;
    t.r0 = t.group * rows + block * BT_CONV_ROWS;
    t.r1 = t.group * rows + ((block + 1) * BT_CONV_ROWS < rows ? (block + 1) * BT_CONV_ROWS : rows);
    return t;
}

#define BT_TERNARY_CONV2D_PACKED(X)                                                                                    \
    BT_ON_X86(X(ternary_conv2d_packed, BT_CPU, BT_SET(BT_I8), avx512vnni, BT_CPU_AVX512VNNI))                          \
    BT_ON_X86(X(ternary_conv2d_packed, BT_CPU, BT_FLOATS, avx512, BT_CPU_AVX512))                                      \
    BT_ON_X86(X(ternary_conv2d_packed, BT_CPU, BT_FLOATS | BT_SET(BT_I8), avx2, BT_CPU_AVX2))                          \
    BT_ON_ARM(X(ternary_conv2d_packed, BT_CPU, BT_SET(BT_I8), neondot, BT_CPU_NEONDOT))                                \
    BT_ON_ARM(X(ternary_conv2d_packed, BT_CPU, BT_FLOATS | BT_SET(BT_I8), neon, BT_CPU_NEON))                          \
    X(ternary_conv2d_packed, BT_CPU, BT_FLOATS | BT_SET(BT_I8), scalar, 0)

BT_TERNARY_CONV2D_PACKED(BT_DECLARE_KERNEL)

#ifdef __cplusplus
}
#endif
#endif
