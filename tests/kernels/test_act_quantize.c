/* act_quantize: the scalar kernel against the formula of its header, the others against the scalar one. */
#include "harness.h"

#include <math.h>
#include <string.h>

enum { NORMAL, ZEROS, DENORMALS, HUGE_VALUES, WITH_NAN, WITH_INF, TIES, TINY, ROW_KINDS };

static void fill_row(void *x, int type, int64_t at, int64_t k, int kind) {
    for (int64_t c = 0; c < k; c++) {
        float value = random_normal();
        if (kind == ZEROS)
            value = c % 2 ? -0.0f : 0.0f;
        else if (kind == DENORMALS)
            value *= 1e-40f;
        else if (kind == HUGE_VALUES)
            value *= 1e4f;
        else if (kind == TIES) /* with an absmax of 127 the codes lie at halves */
            value = c == 0 ? 127.0f : (float)(random_below(508) - 254) / 2.0f;
        else if (kind == TINY)
            value *= 3e-6f;
        store_value(x, type, at + c, value);
    }
    if (k > 0 && (kind == WITH_NAN || kind == WITH_INF))
        store_value(x, type, at + random_below(k), kind == WITH_NAN ? NAN : -INFINITY);
}

static int64_t planes_position(int64_t c) {
    const int64_t block = c / 256, inside = c % 256;
    return block * 256 + inside % 4 * 64 + inside / 4;
}

/* Of the norm of a row, by the header; near the value that a sum in long double gives. */
static float norm_factor(const bt_act_quantize *p, int64_t row) {
    double lane[256] = {0};
    long double exact = 0;
    for (int64_t c = 0; c < p->k; c++) {
        const double x = value_at(p->x, p->x_type, row * p->ldx + c);
        lane[c % 256] += x * x;
        exact += (long double)x * x;
    }
    for (int width = 128; width > 0; width /= 2)
        for (int i = 0; i < width; i++)
            lane[i] += lane[i + width];
    const float factor = (float)(1.0 / sqrt(lane[0] / (double)p->k + p->norm_eps));
    const double near = 1.0 / sqrt((double)(exact / p->k) + p->norm_eps);
    check(p->k == 0 || !isfinite((double)exact) || fabs(factor - near) <= 1e-7 * near, "factor of a norm");
    return factor;
}

static float activation(const bt_act_quantize *p, int64_t row, int64_t c, float factor) {
    const float x = (float)value_at(p->x, p->x_type, row * p->ldx + c);
    if (!p->norm_weight)
        return x;
    const float scaled = x * factor;
    return scaled * (float)value_at(p->norm_weight, p->norm_type, c);
}

static void check_row(const bt_act_quantize *p, int64_t row) {
    const int planes = p->order == BT_ORDER_PLANES;
    const int8_t *q = p->q + row * p->ldq;
    const float norm = p->norm_weight ? norm_factor(p, row) : 1.0f;
    float most = 0.0f;
    int finite = 1, codes_agree = 1;
    int64_t sum = 0, padding = 0;
    for (int64_t c = 0; c < p->k; c++) {
        const float x = activation(p, row, c, norm);
        finite = finite && isfinite(x);
        most = fmaxf(most, fabsf(x));
    }
    most = fmaxf(most, 1e-5f);
    const float factor = 127.0f / most;
    for (int64_t c = 0; c < p->k; c++) {
        const float x = activation(p, row, c, norm);
        const float code = p->x_type == BT_I8 ? x
                           : finite           ? fminf(fmaxf(nearbyintf(x * factor), -127.0f), 127.0f)
                                              : 0.0f;
        codes_agree = codes_agree && q[planes ? planes_position(c) : c] == (int)code;
        sum += (int)code;
    }
    for (int64_t c = p->k; planes && c % 256 != 0; c++)
        padding |= q[planes_position(c)];
    check(codes_agree, "codes");
    check(padding == 0, "padding");
    check(p->sum == NULL || p->sum[row] == sum, "sum");
    const float scale = finite ? most / 127.0f : NAN;
    check(p->x_type == BT_I8 || same_values(&scale, &p->scale[row], BT_F32, 1), "scale");
}

/* The digits of a row are those of the code, each in its range; the code is that of the header's formula. */
static void check_digits(const bt_act_quantize *p, int64_t row) {
    const int planes = p->order == BT_ORDER_PLANES;
    const double limit = p->digits == 2 ? 32639.0 : 8355711.0;
    const float norm = p->norm_weight ? norm_factor(p, row) : 1.0f;
    double most = 0.0;
    int64_t sum[3] = {0}, padding = 0;
    int finite = 1, codes_agree = 1;
    for (int64_t c = 0; c < p->k; c++) {
        const double x = (double)activation(p, row, c, norm);
        finite = finite && isfinite(x);
        most = fmax(most, fabs(x));
    }
    for (int64_t c = 0; c < p->k; c++) {
        const double x = (double)activation(p, row, c, norm);
        const double rounded = finite && most > 0.0 ? nearbyint(x * (limit / most)) : 0.0;
        int64_t code = 0;
        for (int d = p->digits - 1; d >= 0; d--) {
            const int8_t digit = p->q[(p->digits * row + d) * p->ldq + (planes ? planes_position(c) : c)];
            code = 256 * code + digit;
            sum[d] += digit;
        }
        codes_agree = codes_agree && (double)code == fmin(fmax(rounded, -limit), limit);
    }
    for (int d = 0; d < p->digits; d++) {
        for (int64_t c = p->k; planes && c % 256 != 0; c++)
            padding |= p->q[(p->digits * row + d) * p->ldq + planes_position(c)];
        check(p->sum == NULL || p->sum[p->digits * row + d] == sum[d], "sum of a digit");
    }
    check(codes_agree, "codes of digits");
    check(padding == 0, "padding");
    const double step = p->step[row];
    check(finite ? step == most / limit : isnan(step), "step");
}

static bt_act_quantize with_outputs(bt_act_quantize p, int64_t width, int with_sum) {
    p.q = buffer(matrix_bytes(p.digits * p.m, width, p.ldq, BT_I8));
    p.scale = p.digits == 1 ? buffer((size_t)p.m * sizeof *p.scale) : NULL;
    p.step = p.digits > 1 ? buffer((size_t)p.m * sizeof *p.step) : NULL;
    p.sum = with_sum ? buffer((size_t)(p.digits * p.m) * sizeof *p.sum) : NULL;
    return p;
}

static int same_steps(const double *a, const double *b, int64_t count) {
    int same = 1;
    for (int64_t i = 0; i < count; i++)
        same = same && (a[i] == b[i] || (isnan(a[i]) && isnan(b[i])));
    return same;
}

/* norm: the type of its weight, or NO_NORM. */
enum { NO_NORM = -1 };

static void check_quantize(int64_t m, int64_t k, int64_t gap, int type, int order, int digits, int norm,
                           int first_kind) {
    const int64_t width = order == BT_ORDER_PLANES ? (k + 255) / 256 * 256 : k;
    set_context("act_quantize m=%ld k=%ld gap=%ld %s order=%d digits=%d norm=%d kind=%d", (long)m, (long)k, (long)gap,
                type_name(type), order, digits, norm, first_kind);
    bt_act_quantize p = {.m = m, .k = k, .ldx = k + gap, .x_type = type, .order = order, .digits = digits};
    p.ldq = order == BT_ORDER_PLANES ? width + 256 * gap : width + gap;
    void *x = buffer(matrix_bytes(m, k, p.ldx, type));
    for (int64_t r = 0; r < m; r++)
        if (type == BT_I8)
            for (int64_t c = 0; c < k; c++)
                ((int8_t *)x)[r * p.ldx + c] = (int8_t)(random_below(256) - 128);
        else
            fill_row(x, type, r * p.ldx, k, (int)((first_kind + r) % ROW_KINDS));
    p.x = x;
    if (norm != NO_NORM) {
        void *weight = buffer(matrix_bytes(1, k, k, norm));
        for (int64_t c = 0; c < k; c++)
            store_value(weight, norm, c, 1.0f + 0.3f * random_normal());
        p.norm_weight = weight, p.norm_type = norm, p.norm_eps = 1e-5;
    }
    const bt_act_quantize expected = with_outputs(p, width, 1);
    bt_act_quantize_scalar(&expected, 0, m);
    for (int64_t r = 0; r < m; r++)
        digits == 1 ? check_row(&expected, r) : check_digits(&expected, r);
    check(gaps_untouched(expected.q, digits * m, width, p.ldq, BT_I8), "bytes between rows");
    for (const bt_kernel *kernel = NULL; (kernel = next_compared(kernel, BT_OP_act_quantize));) {
        if (!(kernel->dtypes & BT_SET(type)))
            continue;
        set_context("act_quantize_%s m=%ld k=%ld gap=%ld %s order=%d digits=%d norm=%d kind=%d", kernel->variant,
                    (long)m, (long)k, (long)gap, type_name(type), order, digits, norm, first_kind);
        const bt_act_quantize got = with_outputs(p, width, gap == 0);
        bt_act_quantize_fn *run = (bt_act_quantize_fn *)kernel->run;
        run(&got, m / 2, m);
        run(&got, 0, m / 2);
        check(memcmp(got.q, expected.q, matrix_bytes(digits * m, width, p.ldq, BT_I8)) == 0, "codes as scalar");
        check(digits == 1 ? same_values(got.scale, expected.scale, BT_F32, m) : same_steps(got.step, expected.step, m),
              "scale as scalar");
        check(got.sum == NULL || memcmp(got.sum, expected.sum, (size_t)(digits * m) * sizeof *got.sum) == 0,
              "sum as scalar");
    }
    release();
}

void test_act_quantize(void) {
    for (int i = 0; i < COUNT_K; i++)
        for (int j = 0; j < COUNT_M; j++)
            for (int gap = 0; gap < 2; gap++)
                for (int type = BT_F32; type <= BT_I8; type++)
                    for (int order = BT_ORDER_NATURAL; order <= BT_ORDER_PLANES; order++)
                        for (int digits = 1; digits <= (type == BT_I8 ? 1 : 3); digits++) {
                            const int kind = (i + j + 4 * gap + digits) % ROW_KINDS;
                            check_quantize(some_m[j], some_k[i], gap, type, order, digits, NO_NORM, kind);
                            if (type != BT_I8)
                                check_quantize(some_m[j], some_k[i], gap, type, order, digits, (i + digits) % 3, kind);
                        }
}
