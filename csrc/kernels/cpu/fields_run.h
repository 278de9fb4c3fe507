/* A run of ternary_from_fields by words of four bytes: all of it in the scalar kernel, what is left over in others. */
#ifndef BT_CPU_FIELDS_RUN_H
#define BT_CPU_FIELDS_RUN_H

#include "../ternary_from_fields.h"

#include <string.h>

/* 0, 1, 2 and 3 become 10, 00, 01 and 11. */
static inline uint32_t bt_codes_of_fields(uint32_t fields) {
    return (fields >> 1 & 0x55555555u) | (~(fields ^ fields << 1) & 0xaaaaaaaau);
}

/* Code i of byte m becomes code m of byte i: two exchanges of blocks across the diagonal. */
static inline uint32_t bt_transposed_codes(uint32_t codes) {
    uint32_t changed = (codes ^ codes >> 6) & 0x00cc00ccu;
    codes ^= changed ^ changed << 6;
    changed = (codes ^ codes >> 12) & 0x0000f0f0u;
    return codes ^ changed ^ changed << 12;
}

/* Writes the codes of bytes `begin` to `run` of a run, begin being a multiple of 4. Returns whether a field is 3. */
static inline int bt_fields_run(const bt_ternary_from_fields *p, const uint8_t *data, uint8_t *w, int64_t begin) {
    uint32_t reserved = 0;
    for (int64_t m = begin; m < p->run; m += 4) {
        const size_t count = p->run - m < 4 ? (size_t)(p->run - m) : 4;
        uint32_t fields = 0x55555555u; /* weights 0, which pad a part */
        memcpy(&fields, data + m, count);
        reserved |= fields & fields >> 1;
        const uint32_t parts = bt_transposed_codes(bt_codes_of_fields(fields));
        for (int i = 0; i < 4; i++)
            w[i * p->ldpart + m / 4] = (uint8_t)(parts >> (p->high_first ? 24 - 8 * i : 8 * i));
    }
    return (reserved & 0x55555555u) != 0;
}

#endif
