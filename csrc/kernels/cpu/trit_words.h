/* Words of packed codes as vectors of the compiler: BT_WORD_BYTES bytes, at any address. */
#ifndef BT_CPU_TRIT_WORDS_H
#define BT_CPU_TRIT_WORDS_H

#include <stdint.h>
#include <string.h>

typedef uint64_t bt_word __attribute__((vector_size(BT_WORD_BYTES)));

/* The low bit of each code. */
static inline __attribute__((always_inline)) bt_word bt_low_bits(void) {
    return (bt_word){0} + 0x5555555555555555u;
}

static inline __attribute__((always_inline)) bt_word bt_load_word(const uint8_t *from) {
    bt_word v;
    memcpy(&v, from, sizeof v);
    return v;
}

static inline __attribute__((always_inline)) void bt_store_word(uint8_t *to, bt_word v) {
    memcpy(to, &v, sizeof v);
}

/* The first `bytes` bytes, then zeros. */
static inline bt_word bt_load_part(const uint8_t *from, int64_t bytes) {
    bt_word v = {0};
    memcpy(&v, from, (size_t)bytes);
    return v;
}

#endif
