/* ternary_conv2d_packed: the scalar kernel, prepared input and patches included, against plain loops over the formula,
 * bit for bit; the others against the scalar one. */
#include "harness.h"

#include <stdlib.h>
#include <string.h>

typedef struct case_t {
    int64_t samples, channels, height, width, n, groups;
    int64_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
    int64_t scale_columns; /* of a scale; 0: one scale for all, -1: one a row */
    int x_type, y_type, bias_type, with_bias, gap, fill, digits;
} case_t;

static void describe(const case_t *t, const char *variant) {
    set_context("ternary_conv2d_packed_%s x=%ldx%ldx%ldx%ld %s n=%ld groups=%ld kernel=%ldx%ld stride=%ldx%ld "
                "pad=%ldx%ld dilation=%ldx%ld scale=%ld y=%s bias=%d gap=%d fill=%d digits=%d",
                variant, (long)t->samples, (long)t->channels, (long)t->height, (long)t->width, type_name(t->x_type),
                (long)t->n, (long)t->groups, (long)t->kernel_h, (long)t->kernel_w, (long)t->stride_h, (long)t->stride_w,
                (long)t->pad_h, (long)t->pad_w, (long)t->dilation_h, (long)t->dilation_w, (long)t->scale_columns,
                type_name(t->y_type), t->with_bias, t->gap, t->fill, t->digits);
}

/* Element (channel of the group of row r, i, j) of the patch of (oh, ow); 0 in the padding. */
static double patch_at(const bt_ternary_conv2d_packed *p, int64_t image, int64_t r, int64_t oh, int64_t ow, int64_t c) {
    const int64_t j = c % p->kernel_w, i = c / p->kernel_w % p->kernel_h, channel = c / p->kernel_w / p->kernel_h;
    const int64_t ih = oh * p->stride_h + i * p->dilation_h - p->pad_h;
    const int64_t iw = ow * p->stride_w + j * p->dilation_w - p->pad_w;
    if (ih < 0 || ih >= p->height || iw < 0 || iw >= p->width)
        return 0.0;
    const int64_t first = r / (p->n / p->groups) * (p->channels / p->groups);
    return value_at(p->x, p->x_type, ((image * p->channels + first + channel) * p->height + ih) * p->width + iw);
}

static float expected_f32(const bt_ternary_conv2d_packed *p, int64_t s, int64_t r, int64_t oh, int64_t ow,
                          const int8_t *trits) {
    float sum = 0.0f;
    for (int64_t begin = 0; begin < p->k; begin += p->group) {
        float dot = 0.0f;
        for (int64_t c = begin; c < begin + p->group; c++) {
            const float product = (float)trits[r * p->k + c] * (float)patch_at(p, s, r, oh, ow, c);
            dot += product;
        }
        const float scaled = dot * p->scale[r * p->lds + begin / p->group];
        sum += scaled;
    }
    return sum;
}

static float expected_i8(const bt_ternary_conv2d_packed *p, int64_t s, int64_t r, int64_t oh, int64_t ow,
                         const int8_t *trits) {
    float sum = 0.0f;
    double wide_sum = 0.0;
    for (int64_t begin = 0; begin < p->k; begin += p->group) {
        const float scale = p->scale[r * p->lds + begin / p->group];
        int64_t joined = 0;
        for (int d = p->digits - 1; d >= 0; d--) {
            int64_t dot = 0;
            for (int64_t c = begin; c < begin + p->group; c++)
                dot += trits[r * p->k + c] * (int64_t)patch_at(p, s * p->digits + d, r, oh, ow, c);
            joined = 256 * joined + dot;
        }
        if (p->digits == 1) {
            const float factor = p->q_scale[s] * scale;
            const float product = (float)joined * factor;
            sum += product;
        } else {
            const double scaled = (double)joined * p->q_step[s];
            const double product = scaled * (double)scale;
            wide_sum += product;
        }
    }
    return p->digits == 1 ? sum : (float)wide_sum;
}

static void check_scalar(const bt_ternary_conv2d_packed *p, const int8_t *trits) {
    int agrees = 1;
    for (int64_t s = 0; s < p->samples; s++)
        for (int64_t r = 0; r < p->n; r++)
            for (int64_t o = 0; o < p->out_h * p->out_w; o++) {
                float cast, sum = p->x_type == BT_I8 ? expected_i8(p, s, r, o / p->out_w, o % p->out_w, trits)
                                                     : expected_f32(p, s, r, o / p->out_w, o % p->out_w, trits);
                if (p->bias)
                    sum += (float)value_at(p->bias, p->bias_type, r);
                store_value(&cast, p->y_type, 0, sum);
                const size_t at = (size_t)((s * p->n + r) * p->out_h * p->out_w + o) * type_size(p->y_type);
                agrees = agrees && value_at(&cast, p->y_type, 0) == value_at((const char *)p->y + at, p->y_type, 0);
            }
    check(agrees, "scalar against plain loops");
}

/* With a patch of its own, which begins as NaN: what lies past the last column must not reach a sum. */
static void run_in_halves(bt_ternary_conv2d_packed_fn *run, bt_ternary_conv2d_packed p) {
    const int64_t tiles = bt_conv_tiles(&p);
    const size_t bytes = (size_t)bt_conv_patch_bytes(&p);
    p.patch = memset(buffer(bytes), 0xff, bytes);
    run(&p, tiles / 2, tiles);
    run(&p, 0, tiles / 2);
}

static void compare(const case_t *t, bt_ternary_conv2d_packed p, size_t y_bytes) {
    const void *expected = p.y;
    for (const bt_kernel *kernel = NULL; (kernel = next_compared(kernel, BT_OP_ternary_conv2d_packed));) {
        if (!(kernel->dtypes & BT_SET(p.x_type)))
            continue;
        describe(t, kernel->variant);
        p.y = buffer(y_bytes);
        run_in_halves((bt_ternary_conv2d_packed_fn *)kernel->run, p);
        check(same_values(p.y, expected, p.y_type, (int64_t)(y_bytes / type_size(p.y_type))), "bits as scalar");
    }
}

static void fill_input(const case_t *t, void *x, int64_t count) {
    if (t->x_type != BT_I8) {
        fill_normal(x, t->x_type, count);
        return;
    }
    for (int64_t i = 0; i < count; i++)
        ((int8_t *)x)[i] = byte_of(t->fill, i);
}

/* Weights of one sign, for sums at their bounds. */
static void fill_weights(uint8_t *w, int64_t n, int64_t k, int64_t ldw, int8_t *trits) {
    const int code = random_below(2) ? 1 : 2;
    for (int64_t i = 0; i < n * k; i++) {
        const int64_t r = i / k, c = i % k;
        uint8_t *byte = w + r * ldw + c / 4;
        *byte = (uint8_t)((c % 4 ? *byte : 0) | code << (2 * (c % 4)));
        trits[i] = code == 1 ? 1 : -1;
    }
}

static int64_t out_size(int64_t in, int64_t pad, int64_t kernel, int64_t stride, int64_t dilation) {
    const int64_t left = in + 2 * pad - dilation * (kernel - 1) - 1;
    return left < 0 ? 0 : left / stride + 1;
}

static void check_case(const case_t *t) {
    describe(t, "scalar");
    const int64_t k = t->channels / t->groups * t->kernel_h * t->kernel_w;
    const int64_t group = t->scale_columns > 0 ? t->scale_columns : k;
    bt_ternary_conv2d_packed p = {.samples = t->samples,
                                  .channels = t->channels,
                                  .height = t->height,
                                  .width = t->width,
                                  .n = t->n,
                                  .k = k,
                                  .kernel_h = t->kernel_h,
                                  .kernel_w = t->kernel_w,
                                  .stride_h = t->stride_h,
                                  .stride_w = t->stride_w,
                                  .pad_h = t->pad_h,
                                  .pad_w = t->pad_w,
                                  .dilation_h = t->dilation_h,
                                  .dilation_w = t->dilation_w,
                                  .out_h = out_size(t->height, t->pad_h, t->kernel_h, t->stride_h, t->dilation_h),
                                  .out_w = out_size(t->width, t->pad_w, t->kernel_w, t->stride_w, t->dilation_w),
                                  .groups = t->groups,
                                  .ldw = (k + 3) / 4 + t->gap,
                                  .lds = t->scale_columns == 0 ? 0
                                         : k                   ? k / group
                                                               : 1,
                                  .group = group,
                                  .x_type = t->x_type,
                                  .y_type = t->y_type,
                                  .bias_type = t->bias_type,
                                  .digits = t->digits};
    if (p.out_h == 0 || p.out_w == 0)
        return;
    const int64_t scales = p.lds ? t->n * p.lds : 1, images = t->samples * t->digits;
    const int64_t count = images * t->channels * t->height * t->width;
    const size_t y_bytes = (size_t)(t->samples * t->n * p.out_h * p.out_w) * type_size(t->y_type);
    int8_t *trits = malloc((size_t)(t->n * k) + 1);
    uint8_t *w = random_weights(t->n, k, p.ldw, trits);
    if (t->fill != RANDOM)
        fill_weights(w, t->n, k, p.ldw, trits);
    p.w = w;
    void *x = buffer((size_t)count * type_size(t->x_type));
    double *q_step = buffer((size_t)t->samples * sizeof *q_step);
    float *q_scale = buffer((size_t)t->samples * sizeof *q_scale), *scale = buffer((size_t)scales * sizeof *scale);
    void *bias = buffer((size_t)t->n * type_size(t->bias_type));
    fill_input(t, x, count);
    fill_normal(q_scale, BT_F32, t->samples);
    for (int64_t i = 0; i < t->samples; i++)
        q_step[i] = (double)q_scale[i] / 8355711.0;
    fill_normal(scale, BT_F32, scales);
    fill_normal(bias, t->bias_type, t->n);
    p.x = x, p.q_scale = q_scale, p.q_step = q_step, p.scale = scale, p.bias = t->with_bias ? bias : NULL;
    p.xp = buffer((size_t)((images * bt_conv_image(&p) + BT_CONV_SLACK) * bt_conv_size(&p)));
    p.y = buffer(y_bytes);
    const int64_t planes = images * t->channels;
    bt_ternary_conv2d_packed_prepare(&p, planes / 2, planes);
    bt_ternary_conv2d_packed_prepare(&p, 0, planes / 2);
    run_in_halves(bt_ternary_conv2d_packed_scalar, p);
    check_scalar(&p, trits);
    compare(t, p, y_bytes);
    free(trits);
    release();
}

/* The case for floats, in turn of each type, and for 1 to 3 digits. */
static void check_types(case_t t) {
    static int turn;
    const int i = turn++;
    t.y_type = i % 3, t.bias_type = i / 3 % 3, t.with_bias = i % 4 > 0, t.gap = i % 2 * 3;
    t.x_type = t.y_type, t.digits = 1, t.fill = RANDOM;
    check_case(&t);
    t.x_type = BT_I8, t.fill = i % 5 < FILLS ? i % 5 : RANDOM;
    for (t.digits = 1; t.digits <= 3; t.digits++)
        check_case(&t);
}

static void check_geometry(int64_t kernel_h, int64_t kernel_w, int64_t stride, int64_t pad, int64_t dilation) {
    const int64_t groups = 1 + random_below(2), k4 = kernel_h * kernel_w % 4 == 0;
    case_t t = {.samples = 1 + random_below(2),
                .channels = groups * (1 + random_below(3)),
                .height = 1 + random_below(10),
                .width = 1 + random_below(21),
                .n = groups * (1 + random_below(6)),
                .groups = groups,
                .kernel_h = kernel_h,
                .kernel_w = kernel_w,
                .stride_h = 1 + random_below(3),
                .stride_w = stride,
                .pad_h = random_below(3),
                .pad_w = pad,
                .dilation_h = 1 + random_below(2),
                .dilation_w = dilation,
                .scale_columns = k4 && random_below(2) ? 4 : random_below(2) - 1};
    check_types(t);
}

void test_ternary_conv2d_packed(void) {
    static const int64_t kernels[][2] = {{1, 1}, {3, 3}, {2, 5}, {1, 4}, {5, 2}, {2, 2}};
    for (int i = 0; i < 6; i++)
        for (int64_t stride = 1; stride <= 4; stride++)
            for (int64_t pad = 0; pad < 4; pad++)
                for (int64_t dilation = 1; dilation <= 3; dilation++)
                    check_geometry(kernels[i][0], kernels[i][1], stride, pad, dilation);
    static const case_t shapes[] = {
        /* several tiles of positions and of rows; nothing of some sizes; sums that are flushed, at their bounds */
        {.samples = 2, .channels = 3, .height = 17, .width = 33, .n = 70, .groups = 1, .kernel_h = 3, .kernel_w = 3},
        {.samples = 1, .channels = 130, .height = 3, .width = 3, .n = 130, .groups = 2, .kernel_h = 3, .kernel_w = 3},
        {.samples = 1, .channels = 160, .height = 4, .width = 4, .n = 5, .groups = 1, .kernel_h = 3, .kernel_w = 3},
        {.samples = 0, .channels = 2, .height = 4, .width = 4, .n = 5, .groups = 1, .kernel_h = 3, .kernel_w = 3},
        {.samples = 2, .channels = 0, .height = 4, .width = 4, .n = 5, .groups = 1, .kernel_h = 3, .kernel_w = 3},
        {.samples = 2, .channels = 2, .height = 4, .width = 4, .n = 0, .groups = 1, .kernel_h = 3, .kernel_w = 3},
        {.samples = 1, .channels = 8, .height = 9, .width = 9, .n = 8, .groups = 8, .kernel_h = 3, .kernel_w = 3},
    };
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int64_t scale = -1; scale <= 4; scale += 1 + 3 * (scale == 0)) {
            case_t t = shapes[i];
            if (scale == 4 && t.channels / t.groups % 4)
                continue;
            t.stride_h = t.stride_w = t.dilation_h = t.dilation_w = t.pad_h = t.pad_w = 1;
            t.scale_columns = scale;
            for (int turn = 0; turn < 5; turn++)
                check_types(t);
        }
}
