/* ternary_from_base3, weight by weight: by divisions from the numbers that the bytes stand for. */
#include "harness.h"

typedef struct layout_t {
    int number, weights, bytes; /* of a block; a row of BT_BASE3_ROWS has one block a byte, the last one in part */
    int parts[3];
} layout_t;

static const layout_t layouts[] = {
    {BT_BASE3_ROWS, 5, 1, {0}}, {BT_BASE3_TQ1, 256, 54, {32, 16, 4}}, {BT_BASE3_PTQ1, 128, 28, {16, 8, 2}}};

/* The code of weight c of a row. */
static unsigned expected_code(const layout_t *layout, const uint8_t *row, int64_t c) {
    static const unsigned code_of[3] = {2, 0, 1}, power[5] = {1, 3, 9, 27, 81};
    const uint8_t *block = row + c / layout->weights * layout->bytes;
    int at = (int)(c % layout->weights);
    if (layout->number == BT_BASE3_ROWS)
        return *block > 242 ? 3u : code_of[*block / power[at] % 3];
    int part = 0;
    for (; part < 2 && at >= 5 * layout->parts[part]; block += layout->parts[part++])
        at -= 5 * layout->parts[part];
    const unsigned byte = block[at % layout->parts[part]];
    for (unsigned v = 0; v < 243; v++)
        if ((v * 256 + 242) / 243 == byte)
            return code_of[v / power[4 - at / layout->parts[part]] % 3];
    return 3;
}

static void check_decoding(const layout_t *layout, int64_t n, int64_t k, int64_t gap) {
    set_context("ternary_from_base3 layout=%d n=%ld k=%ld gap=%ld", layout->number, (long)n, (long)k, (long)gap);
    const int64_t bytes = bt_div_up(k, layout->weights) * layout->bytes, ldd = bytes + gap;
    const int64_t used = (k + 3) / 4, ldw = used + gap;
    uint8_t *data = buffer(matrix_bytes(n, bytes, ldd, BT_I8)), *w = buffer(matrix_bytes(n, used, ldw, BT_I8));
    for (int64_t r = 0; r < n; r++)
        for (int64_t j = 0; j < bytes; j++) /* every byte, in every place of a block */
            data[r * ldd + j] = (uint8_t)(n == 256 ? r + 7 * j : random_below(256));
    const bt_ternary_from_base3 p = {
        .data = data, .w = w, .n = n, .k = k, .ldd = ldd, .ldw = ldw, .layout = layout->number};
    bt_ternary_from_base3_scalar(&p, n / 2, n);
    bt_ternary_from_base3_scalar(&p, 0, n / 2);
    int same = 1;
    for (int64_t r = 0; r < n; r++)
        for (int64_t c = 0; c < 4 * used; c++) {
            const unsigned found = w[r * ldw + c / 4] >> (2 * (c % 4)) & 3u;
            same =
                same &&
                found == (c < layout->weights * bytes / layout->bytes ? expected_code(layout, data + r * ldd, c) : 0u);
        }
    check(same, "codes and padding");
    check(gaps_untouched(w, n, used, ldw, BT_I8), "bytes between rows");
    release();
}

void test_ternary_from_base3(void) {
    for (int64_t gap = 0; gap < 8; gap += 7) {
        for (int64_t k = 0; k < 90; k++)
            check_decoding(&layouts[0], k % 7, k, gap);
        for (int i = 0; i < COUNT_K; i++)
            check_decoding(&layouts[0], 3, some_k[i], gap);
        for (int i = 0; i < 3; i++)
            for (int64_t blocks = 0; blocks < 4; blocks++)
                check_decoding(&layouts[i], blocks == 1 ? 256 : 3, blocks * layouts[i].weights, gap);
    }
}
