/* The frame of ternary_conv2d_packed on a CPU: the patches of a tile, the walk over its rows, and what follows a sum.
 *
 * Lanes are output positions, which lie side by side in y: no sum over lanes is left to do, and y is written in runs.
 *
 *   patches, fp32   patch[64 c + lane]                              c a column, lane a position of the tile
 *   patches, bytes  patch[256 (c / 4) + 4 lane + c % 4]             the four bytes of a lane meet one byte of w
 *
 * A variant brings `dot_f32` or `dot_i8`: the sums over columns [begin, end), begin a multiple of 4, for four rows and
 * 16 * `vectors` lanes; bytes are code + 128, and what that adds is taken off here, but for `signed_bytes`, whose
 * dot_i8 multiplies the codes themselves. `store` writes floats as y holds them. Lanes beyond the positions of a tile
 * hold anything and are not stored. */
#ifndef BT_CPU_CONV2D_TILE_H
#define BT_CPU_CONV2D_TILE_H

#include "../act_quantize.h"
#include "../ternary_conv2d_packed.h"
#include "half.h"
#include "trit.h"

#include <string.h>

enum { BT_CONV_STEP = 4, BT_CONV_LANES = BT_CONV_POSITIONS }; /* rows at once; lanes of a row of sums */

typedef float bt_conv_f32[BT_CONV_STEP][BT_CONV_LANES];
typedef int32_t bt_conv_i32[BT_CONV_STEP][BT_CONV_LANES];

typedef struct bt_conv_variant {
    void (*dot_f32)(bt_conv_f32 sum, const float *patch, const uint8_t *const w[BT_CONV_STEP], int64_t begin,
                    int64_t end, int vectors);
    void (*dot_i8)(bt_conv_i32 sum, const uint8_t *patch, const uint8_t *const w[BT_CONV_STEP], int64_t begin,
                   int64_t end, int vectors);
    void (*store)(void *y, int type, int64_t index, const float *value, int count);
    int signed_bytes;
} bt_conv_variant;

/* Four codes as four signed bytes, the first one lowest; code 11 counts as 0. */
#define BT_TRIT_BYTE(b, i) ((uint32_t)(uint8_t)(((b) >> 2 * (i) & 1) - ((b) >> 2 * (i) >> 1 & 1)) << 8 * (i))
#define BT_TRITS_1(b) (BT_TRIT_BYTE(b, 0) | BT_TRIT_BYTE(b, 1) | BT_TRIT_BYTE(b, 2) | BT_TRIT_BYTE(b, 3))
#define BT_TRITS_4(b) BT_TRITS_1(b), BT_TRITS_1((b) + 1), BT_TRITS_1((b) + 2), BT_TRITS_1((b) + 3)
#define BT_TRITS_16(b) BT_TRITS_4(b), BT_TRITS_4((b) + 4), BT_TRITS_4((b) + 8), BT_TRITS_4((b) + 12)
#define BT_TRITS_64(b) BT_TRITS_16(b), BT_TRITS_16((b) + 16), BT_TRITS_16((b) + 32), BT_TRITS_16((b) + 48)
#define BT_TRIT_BYTES BT_TRITS_64(0), BT_TRITS_64(64), BT_TRITS_64(128), BT_TRITS_64(192)

/* The same as four floats. */
#define BT_TRIT_FLOAT(b, i) (float)(((b) >> 2 * (i) & 1) - ((b) >> 2 * (i) >> 1 & 1))
#define BT_FLOATS_1(b) {BT_TRIT_FLOAT(b, 0), BT_TRIT_FLOAT(b, 1), BT_TRIT_FLOAT(b, 2), BT_TRIT_FLOAT(b, 3)}
#define BT_FLOATS_4(b) BT_FLOATS_1(b), BT_FLOATS_1((b) + 1), BT_FLOATS_1((b) + 2), BT_FLOATS_1((b) + 3)
#define BT_FLOATS_16(b) BT_FLOATS_4(b), BT_FLOATS_4((b) + 4), BT_FLOATS_4((b) + 8), BT_FLOATS_4((b) + 12)
#define BT_FLOATS_64(b) BT_FLOATS_16(b), BT_FLOATS_16((b) + 16), BT_FLOATS_16((b) + 32), BT_FLOATS_16((b) + 48)
#define BT_TRIT_FLOATS BT_FLOATS_64(0), BT_FLOATS_64(64), BT_FLOATS_64(128), BT_FLOATS_64(192)

/* Runs of positions in one output row, cut to pieces of at most `width` elements. A piece is copied whole: what it
 * copies too much is overwritten by the next one, or is beyond the positions. */
typedef struct bt_conv_pieces {
    int64_t from[BT_CONV_POSITIONS]; /* offset in a padded plane */
    int lane[BT_CONV_POSITIONS], count;
} bt_conv_pieces;

static inline bt_conv_pieces bt_conv_pieces_of(const bt_ternary_conv2d_packed *p, const bt_conv_tile *t, int width) {
    bt_conv_pieces pieces;
    pieces.count = 0;
    int64_t oh = t->position / p->out_w, ow = t->position % p->out_w;
    for (int lane = 0; lane < t->positions;) {
        const int64_t left = p->out_w - ow;
        const int run = left < width ? (int)left : width;
        pieces.from[pieces.count] = oh * p->stride_h * bt_conv_row(p) + ow;
        pieces.lane[pieces.count++] = lane;
        lane += run;
        ow += run;
        if (ow == p->out_w)
            oh++, ow = 0;
    }
    return pieces;
}

/* How many elements a piece is copied with. */
static inline int bt_conv_width(const bt_ternary_conv2d_packed *p) {
    return p->out_w <= 4 ? 4 : p->out_w <= 8 ? 8 : p->out_w <= 24 ? 16 : 32;
}

/* `count` columns from (channel, i, j) on, which move on: each as a row of lanes. `width` and `size` are constants. */
typedef struct bt_conv_column {
    int64_t channel, i, j;
} bt_conv_column;

static inline __attribute__((always_inline)) void bt_conv_copy_columns(const bt_ternary_conv2d_packed *p,
                                                                       const bt_conv_pieces *pieces, const char *image,
                                                                       bt_conv_column *at, int64_t count, char *to,
                                                                       const int width, const size_t size) {
    const int64_t plane = bt_conv_plane(p), row = bt_conv_row(p), pitch = bt_conv_pitch(p);
    for (int64_t c = 0; c < count; c++, to += BT_CONV_LANES * size) {
        int64_t jw = at->j * p->dilation_w;
        if (p->stride_w > 1)
            jw = jw % p->stride_w * pitch + jw / p->stride_w;
        const char *from = image + (size_t)(at->channel * plane + at->i * p->dilation_h * row + jw) * size;
        for (int i = 0; i < pieces->count; i++)
            memcpy(to + (size_t)pieces->lane[i] * size, from + (size_t)pieces->from[i] * size, (size_t)width * size);
        if (++at->j == p->kernel_w) {
            at->j = 0;
            if (++at->i == p->kernel_h)
                at->i = 0, at->channel++;
        }
    }
}

static inline __attribute__((always_inline)) void bt_conv_columns(const bt_ternary_conv2d_packed *p,
                                                                  const bt_conv_pieces *pieces, const char *image,
                                                                  bt_conv_column *at, int64_t count, char *to,
                                                                  int width, const size_t size) {
    if (width == 4)
        bt_conv_copy_columns(p, pieces, image, at, count, to, 4, size);
    else if (width == 8)
        bt_conv_copy_columns(p, pieces, image, at, count, to, 8, size);
    else if (width == 16)
        bt_conv_copy_columns(p, pieces, image, at, count, to, 16, size);
    else
        bt_conv_copy_columns(p, pieces, image, at, count, to, 32, size);
}

/* Four rows of lanes to one row of quads. */
static inline void bt_conv_interleave(const uint8_t *restrict from, uint8_t *restrict to) {
    for (int i = 0; i < BT_CONV_LANES; i++)
        for (int j = 0; j < 4; j++)
            to[4 * i + j] = from[BT_CONV_LANES * j + i];
}

/* The patches of the channels from `image` on. Bytes go by way of 16 rows of lanes: what was stored in pieces is then
 * no longer on its way to the cache when it is read in other pieces. */
static inline void bt_conv_gather(const bt_ternary_conv2d_packed *p, const bt_conv_pieces *pieces, const char *image,
                                  int width, char *patch) {
    const int64_t columns = bt_div_up(p->k, 4) * 4;
    bt_conv_column at = {0, 0, 0};
    if (p->x_type != BT_I8) {
        bt_conv_columns(p, pieces, image, &at, p->k, patch, width, sizeof(float));
        memset(patch + (size_t)p->k * BT_CONV_LANES * sizeof(float), 0,
               (size_t)(columns - p->k) * BT_CONV_LANES * sizeof(float));
        return;
    }
    uint8_t lanes[16 * BT_CONV_LANES + BT_CONV_SLACK]; /* past the last column anything: its codes are 0 */
    for (int64_t c = 0; c < columns; c += 16) {
        const int64_t count = p->k - c < 16 ? p->k - c : 16;
        bt_conv_columns(p, pieces, image, &at, count, (char *)lanes, width, 1);
        for (int64_t quad = 0; quad < bt_div_up(count, 4); quad++)
            bt_conv_interleave(lanes + 4 * BT_CONV_LANES * quad, (uint8_t *)patch + (c + 4 * quad) * BT_CONV_LANES);
    }
}

/* 128 times the sum of the codes of a row. */
static inline int32_t bt_conv_offset(const uint8_t *w, int64_t begin, int64_t end) {
    int plus = 0, minus = 0;
    int64_t at = begin / 4;
    const int64_t last = bt_div_up(end, 4);
    for (; at < last; at += 8) {
        uint64_t word = 0;
        if (last - at >= 8)
            memcpy(&word, w + at, 8);
        else
            for (int64_t i = at; i < last; i++)
                word = word << 8 | w[i];
        plus += __builtin_popcountll(word & 0x5555555555555555u);
        minus += __builtin_popcountll(word & 0xaaaaaaaaaaaaaaaau);
    }
    return 128 * (plus - minus);
}

/* The rows [row, row + 4) of a tile; past its end the last one stands in. */
typedef struct bt_conv_rows {
    const uint8_t *w[BT_CONV_STEP];
    const float *scale[BT_CONV_STEP];
    int count;
} bt_conv_rows;

static inline bt_conv_rows bt_conv_rows_at(const bt_ternary_conv2d_packed *p, int64_t row, int64_t end) {
    bt_conv_rows rows;
    rows.count = end - row < BT_CONV_STEP ? (int)(end - row) : BT_CONV_STEP;
    for (int r = 0; r < BT_CONV_STEP; r++) {
        const int64_t at = row + (r < rows.count ? r : rows.count - 1);
        rows.w[r] = p->w + at * p->ldw;
        rows.scale[r] = p->scale + at * p->lds;
    }
    return rows;
}

static inline void bt_conv_sum_f32(const bt_ternary_conv2d_packed *p, const bt_conv_rows *rows, int vectors,
                                   const bt_conv_variant *v, bt_conv_f32 value) {
    bt_conv_f32 dot;
    int64_t g = 0;
    for (int64_t begin = 0; begin < p->k; begin += p->group, g++) {
        v->dot_f32(dot, p->patch, rows->w, begin, begin + p->group, vectors);
        for (int r = 0; r < rows->count; r++) {
            const float scale = rows->scale[r][g];
            for (int i = 0; i < 16 * vectors; i++)
                value[r][i] = dot[r][i] * scale + (g ? value[r][i] : 0.0f);
        }
    }
}

static inline void bt_conv_sum_i8(const bt_ternary_conv2d_packed *p, const bt_conv_rows *rows, int64_t sample,
                                  int vectors, const bt_conv_variant *v, bt_conv_f32 value) {
    bt_conv_i32 dot;
    int64_t g = 0;
    for (int64_t begin = 0; begin < p->k; begin += p->group, g++) {
        v->dot_i8(dot, p->patch, rows->w, begin, begin + p->group, vectors);
        for (int r = 0; r < rows->count; r++) {
            const int32_t offset = v->signed_bytes ? 0 : bt_conv_offset(rows->w[r], begin, begin + p->group);
            const float factor = p->q_scale[sample] * rows->scale[r][g];
            for (int i = 0; i < 16 * vectors; i++)
                value[r][i] = (float)(dot[r][i] - offset) * factor + (g ? value[r][i] : 0.0f);
        }
    }
}

static inline void bt_conv_sum_digits(const bt_ternary_conv2d_packed *p, const bt_conv_rows *rows, int64_t sample,
                                      int vectors, const bt_conv_variant *v, bt_conv_f32 value) {
    double sum[BT_CONV_STEP][BT_CONV_LANES] = {{0}};
    int64_t g = 0;
    for (int64_t begin = 0; begin < p->k; begin += p->group, g++) {
        double joined[BT_CONV_STEP][BT_CONV_LANES] = {{0}};
        for (int d = p->digits - 1; d >= 0; d--) {
            bt_conv_i32 dot;
            v->dot_i8(dot, (const uint8_t *)p->patch + d * bt_conv_patch_elements(p), rows->w, begin, begin + p->group,
                      vectors);
            for (int r = 0; r < rows->count; r++) {
                const int32_t offset = v->signed_bytes ? 0 : bt_conv_offset(rows->w[r], begin, begin + p->group);
                for (int i = 0; i < 16 * vectors; i++)
                    joined[r][i] = joined[r][i] * 256.0 + (double)(dot[r][i] - offset);
            }
        }
        for (int r = 0; r < rows->count; r++) {
            const double step = p->q_step[sample], scale = (double)rows->scale[r][g];
            for (int i = 0; i < 16 * vectors; i++)
                sum[r][i] += (joined[r][i] * step) * scale;
        }
    }
    for (int r = 0; r < rows->count; r++)
        for (int i = 0; i < 16 * vectors; i++)
            value[r][i] = (float)sum[r][i];
}

static inline void bt_conv_rows_of_tile(const bt_ternary_conv2d_packed *p, const bt_conv_tile *t,
                                        const bt_conv_variant *v) {
    const int vectors = (t->positions + 15) / 16;
    for (int64_t row = t->r0; row < t->r1; row += BT_CONV_STEP) {
        const bt_conv_rows rows = bt_conv_rows_at(p, row, t->r1);
        bt_conv_f32 value;
        if (p->k == 0)
            memset(value, 0, sizeof value);
        if (p->x_type != BT_I8)
            bt_conv_sum_f32(p, &rows, vectors, v, value);
        else if (p->digits == 1)
            bt_conv_sum_i8(p, &rows, t->sample, vectors, v, value);
        else
            bt_conv_sum_digits(p, &rows, t->sample, vectors, v, value);
        for (int r = 0; r < rows.count; r++) {
            if (p->bias) {
                const float bias = bt_load(p->bias, p->bias_type, row + r);
                for (int i = 0; i < 16 * vectors; i++)
                    value[r][i] += bias;
            }
            v->store(p->y, p->y_type, (t->sample * p->n + row + r) * p->out_h * p->out_w + t->position, value[r],
                     t->positions);
        }
    }
}

static inline bt_status bt_conv_tiles_run(const bt_ternary_conv2d_packed *p, int64_t tile_begin, int64_t tile_end,
                                          const bt_conv_variant *v) {
    BT_ASSERT(p->n % p->groups == 0 && p->channels % p->groups == 0 && (p->x_type == BT_I8 || p->digits == 1));
    const int width = bt_conv_width(p);
    const int64_t size = bt_conv_size(p), first_channel = p->channels / p->groups * bt_conv_plane(p);
    bt_conv_tile last = {.sample = -1};
    for (int64_t index = tile_begin; index < tile_end; index++) {
        const bt_conv_tile t = bt_conv_tile_at(p, index);
        if (t.sample != last.sample || t.group != last.group || t.position != last.position) {
            const bt_conv_pieces pieces = bt_conv_pieces_of(p, &t, width);
            for (int d = 0; d < p->digits; d++)
                bt_conv_gather(p, &pieces,
                               (const char *)p->xp +
                                   ((t.sample * p->digits + d) * bt_conv_image(p) + t.group * first_channel) * size,
                               width, (char *)p->patch + d * bt_conv_patch_elements(p) * size);
        }
        bt_conv_rows_of_tile(p, &t, v);
        last = t;
    }
    return BT_OK;
}

#endif
