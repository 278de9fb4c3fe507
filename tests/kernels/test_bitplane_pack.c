/* bitplane_pack and bitplane_matmul: planes by their definition, products by the values, variants by the scalar bits.
 */
#include "harness.h"

#include <string.h>

/* The bit of trit c of a block: of the first half in even bits, of the second in odd ones. */
static int bit_of(const uint8_t *plane, int64_t c) {
    const int64_t inside = c % (BT_PLANE_TRITS / 2);
    return plane[inside / 4] >> (2 * (inside % 4) + c / (BT_PLANE_TRITS / 2)) & 1;
}

static void check_pack(int64_t n, int64_t k, int64_t gap) {
    set_context("bitplane_pack n=%ld k=%ld gap=%ld", (long)n, (long)k, (long)gap);
    const int64_t blocks = bt_div_up(k, BT_PLANE_TRITS), ldw = (k + 3) / 4 + gap,
                  ldp = blocks * BT_PLANE_BLOCK_BYTES + gap;
    const size_t size = matrix_bytes(n, blocks * BT_PLANE_BLOCK_BYTES, ldp, BT_I8);
    int8_t *const trits = buffer((size_t)(n * k));
    uint8_t *const w = random_weights(n, k, ldw, trits);
    for (int64_t r = 0; r < n && k % 4; r++) /* padding that must not count */
        w[r * ldw + k / 4] |= (uint8_t)(0xffu << (2 * (k % 4)));
    bt_bitplane_pack p = {.w = w, .planes = buffer(size), .n = n, .k = k, .ldw = ldw, .ldp = ldp};
    bt_bitplane_pack_scalar(&p, n / 2, n);
    bt_bitplane_pack_scalar(&p, 0, n / 2);
    int right = 1;
    for (int64_t r = 0; r < n; r++)
        for (int64_t c = 0; c < blocks * BT_PLANE_TRITS; c++) {
            const uint8_t *const block = p.planes + r * ldp + c / BT_PLANE_TRITS * BT_PLANE_BLOCK_BYTES;
            const int trit = c < k ? trits[r * k + c] : 0, at = (int)(c % BT_PLANE_TRITS);
            right &= bit_of(block, at) == (trit != 0) && bit_of(block + BT_PLANE_BYTES, at) == (trit < 0);
        }
    check(right, "the planes");
    const uint8_t *const expected = p.planes;
    for (const bt_kernel *kernel = NULL; (kernel = next_compared(kernel, BT_OP_bitplane_pack));) {
        p.planes = buffer(size);
        ((bt_bitplane_pack_fn *)kernel->run)(&p, n / 2, n);
        ((bt_bitplane_pack_fn *)kernel->run)(&p, 0, n / 2);
        check(memcmp(p.planes, expected, size) == 0, kernel->variant);
    }
    release();
}

void test_bitplane_pack(void) {
    for (int i = 0; i < COUNT_K; i++)
        for (int gap = 0; gap < 8; gap += 7)
            check_pack(3, some_k[i], gap);
    check_pack(0, 5, 0);
}
