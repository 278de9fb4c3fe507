/* The frame of trit_elementwise on a CPU. The file that includes this says how many bytes a word has, BT_WORD_BYTES;
 * words are the compiler's vectors, which every instruction set can have. */
#ifndef BT_CPU_TRIT_ROWS_H
#define BT_CPU_TRIT_ROWS_H

#include "../trit_elementwise.h"
#include "trit_words.h"

typedef void bt_trit_run(const uint8_t *a, const uint8_t *b, uint8_t *y, int64_t bytes);

/* The loop of each function, over the bytes of a chunk: whole words, then what is left of one. */
#define BT_TRIT_LOOP(name, operands, codes)                                                                            \
    static inline __attribute__((always_inline)) bt_word name##_of(bt_word a, bt_word b) {                             \
        const bt_word LOW = bt_low_bits();                                                                             \
        (void)LOW;                                                                                                     \
        (void)b;                                                                                                       \
        return codes;                                                                                                  \
    }                                                                                                                  \
    static void run_##name(const uint8_t *pa, const uint8_t *pb, uint8_t *py, int64_t bytes) {                         \
        int64_t j = 0;                                                                                                 \
        _Pragma("GCC unroll 4") for (; j + BT_WORD_BYTES <= bytes; j += BT_WORD_BYTES) {                               \
            const bt_word a = bt_load_word(pa + j), b = (operands) == 2 ? bt_load_word(pb + j) : a;                    \
            bt_store_word(py + j, name##_of(a, b));                                                                    \
        }                                                                                                              \
        if (j < bytes) {                                                                                               \
            const bt_word a = bt_load_part(pa + j, bytes - j);                                                         \
            const bt_word y = name##_of(a, (operands) == 2 ? bt_load_part(pb + j, bytes - j) : a);                     \
            memcpy(py + j, &y, (size_t)(bytes - j));                                                                   \
        }                                                                                                              \
    }
BT_TRIT_FUNCTIONS(BT_TRIT_LOOP)
#undef BT_TRIT_LOOP

static inline __attribute__((always_inline)) bt_status bt_trit_elementwise_tiles(const bt_trit_elementwise *p,
                                                                                 int64_t tile_begin, int64_t tile_end) {
#define BT_TRIT_RUN(name, operands, codes) run_##name,
    static bt_trit_run *const runs[] = {BT_TRIT_FUNCTIONS(BT_TRIT_RUN)};
#undef BT_TRIT_RUN
    const int64_t chunks = bt_trit_chunks(p->k), row_bytes = bt_div_up(p->k, 4);
    BT_ASSERT(p->function >= 0 && p->function < BT_TRIT_COUNT);
    for (int64_t tile = tile_begin; tile < tile_end; tile++) {
        const int64_t row = tile / chunks, begin = tile % chunks * BT_TRIT_CHUNK, left = row_bytes - begin;
        const int64_t bytes = left < BT_TRIT_CHUNK ? left : (int64_t)BT_TRIT_CHUNK;
        uint8_t *const y = p->y + row * p->ldy + begin;
        runs[p->function](p->a + row * p->lda + begin, p->b ? p->b + row * p->ldb + begin : NULL, y, bytes);
        if (bytes == left)
            y[bytes - 1] &= bt_trit_last_mask(p->k);
    }
    return BT_OK;
}

#endif
