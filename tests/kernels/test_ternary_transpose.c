/* ternary_transpose, code by code. */
#include "harness.h"

static unsigned code_at(const uint8_t *w, int64_t ldw, int64_t r, int64_t c) {
    return w[r * ldw + c / 4] >> (2 * (c % 4)) & 3u;
}

static void check_transpose(int64_t n, int64_t k, int64_t gap) {
    set_context("ternary_transpose n=%ld k=%ld gap=%ld", (long)n, (long)k, (long)gap);
    const int64_t ldw = (k + 3) / 4 + gap, bytes = (n + 3) / 4, ldt = bytes + gap;
    int8_t *trits = buffer((size_t)(n * k));
    uint8_t *w = random_weights(n, k, ldw, trits), *t = buffer(matrix_bytes(k, bytes, ldt, BT_I8));
    if (n && k)
        w[(n - 1) * ldw + (k - 1) / 4] |= (uint8_t)(3u << (2 * ((k - 1) % 4))); /* code 11 is moved too */
    const bt_ternary_transpose p = {.w = w, .t = t, .n = n, .k = k, .ldw = ldw, .ldt = ldt};
    const int64_t tiles = bt_div_up(k, BT_TRANSPOSE_TILE);
    bt_ternary_transpose_scalar(&p, tiles / 2, tiles);
    bt_ternary_transpose_scalar(&p, 0, tiles / 2);
    int same = 1;
    for (int64_t c = 0; c < k; c++)
        for (int64_t r = 0; r < 4 * bytes; r++)
            same = same && code_at(t, ldt, c, r) == (r < n ? code_at(w, ldw, r, c) : 0u);
    check(same, "codes and padding");
    check(gaps_untouched(t, k, bytes, ldt, BT_I8), "bytes between rows");
    release();
}

void test_ternary_transpose(void) {
    for (int i = 0; i < COUNT_K; i++)
        for (int j = 0; j < COUNT_K; j++)
            for (int gap = 0; gap < 8; gap += 7)
                check_transpose(some_k[i], some_k[j], gap);
}
