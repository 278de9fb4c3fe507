/* block_unpack: the scalar kernel against the definition of four types, the others against its bits on random bytes. */
#include "harness.h"

#include "../../csrc/kernels/cpu/half.h"

/* By the layout of ggml, one weight at a time; 0 for a type that is not told here. */
static int expected_at(int block, const uint8_t *b, int c, float *value) {
    const float d = bt_from_f16((uint16_t)(b[0] | b[1] << 8));
    switch (block) {
    case BT_BLOCK_Q8_0:
        *value = (float)(int8_t)b[2 + c] * d;
        return 1;
    case BT_BLOCK_Q4_0:
        *value = (float)((b[2 + c % 16] >> (c / 16 * 4) & 15) - 8) * d;
        return 1;
    case BT_BLOCK_Q5_0:
        *value = (float)(((b[6 + c % 16] >> (c / 16 * 4) & 15) | (b[2 + c / 8] >> c % 8 & 1) << 4) - 16) * d;
        return 1;
    case BT_BLOCK_Q2_0:
        *value = (float)((b[2 + c / 4] >> (c % 4 * 2) & 3) - 1) * d;
        return 1;
    default:
        return 0;
    }
}

static void check_formula(const bt_block_unpack *p) {
    const int weights = (int)bt_block_weights(p->block);
    int equal = 1;
    for (int64_t i = 0; i < p->n; i++)
        for (int64_t c = 0; c < p->k; c++) {
            float value;
            const uint8_t *const b = p->w + i * p->ldw + bt_block_row_bytes(p->block, c - c % weights);
            if (expected_at(p->block, b, (int)(c % weights), &value))
                equal &= same_values((const float *)p->y + i * p->ldy + c, &value, BT_F32, 1);
        }
    check(equal, "scalar against the definition");
}

static void check_block_unpack(int block, int64_t n, int64_t blocks, int64_t gap, int type) {
    const int64_t k = blocks * bt_block_weights(block), row = bt_block_row_bytes(block, k), ldw = row + gap,
                  ldy = k + gap;
    set_context("block_unpack %s n=%ld k=%ld gap=%ld %s", bt_block_name(block), (long)n, (long)k, (long)gap,
                type_name(type));
    const size_t bytes = n ? (size_t)((n - 1) * ldw + row) : 0, size = matrix_bytes(n, k, ldy, type);
    uint8_t *const w = buffer(bytes);
    for (size_t i = 0; i < bytes; i++)
        w[i] = (uint8_t)random_bits();
    bt_block_unpack p = {
        .w = w, .y = buffer(size), .n = n, .k = k, .ldw = ldw, .ldy = ldy, .block = block, .y_type = type};
    bt_block_unpack_scalar(&p, 0, n);
    if (type == BT_F32)
        check_formula(&p);
    const void *const expected = p.y;
    for (const bt_kernel *kernel = NULL; (kernel = next_compared(kernel, BT_OP_block_unpack));) {
        bt_block_unpack_fn *run = (bt_block_unpack_fn *)kernel->run;
        p.y = buffer(size);
        run(&p, n / 2, n);
        run(&p, 0, n / 2);
        check_matrix(p.y, expected, n, k, ldy, type, kernel->variant);
    }
    release();
}

void test_block_unpack(void) {
    for (int block = 0; block < BT_BLOCK_COUNT; block++)
        for (int type = BT_F32; type <= BT_BF16; type++) {
            for (int64_t blocks = 0; blocks <= 9; blocks++)
                check_block_unpack(block, 3, blocks, 0, type);
            check_block_unpack(block, 5, 3, 5, type);
            check_block_unpack(block, 0, 1, 0, type);
        }
}
