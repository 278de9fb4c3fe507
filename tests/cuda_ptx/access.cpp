/* Loads, stores and copies of a block, each checked. */
#include "block.h"

#include <cstring>

namespace ptx {

void Block::report(const Instruction *at, const char *what, unsigned thread, Word address) const {
    char where[200];
    const auto after = buffers.upper_bound(address);
    int length = snprintf(where, sizeof where, "block %u, %u, %u thread %u", id[0], id[1], id[2], thread);
    if (address)
        length +=
            snprintf(where + length, sizeof where - (size_t)length, ", address 0x%llx", (unsigned long long)address);
    if (after != buffers.begin() && address < SHARED_WINDOW >> 8)
        snprintf(where + length, sizeof where - (size_t)length, ", %lld bytes into a buffer of %zu",
                 (long long)(address - std::prev(after)->first), std::prev(after)->second.size);
    fault(kernel, at, what, where);
}

/* The bytes at an address and what is known of them, or null after a fault. */
uint8_t *Block::find(const Instruction &at, unsigned thread, Space space, Word address, int bytes, Byte **shadow) {
    const Word window = address & WINDOW_MASK;
    if (space == GENERIC) {
        space = window == SHARED_WINDOW ? SHARED : window == LOCAL_WINDOW ? LOCAL : GLOBAL;
        address -= space == GLOBAL ? 0 : window;
    }
    Region *const region = space == SHARED  ? &shared
                           : space == LOCAL ? &local
                           : space == PARAM ? &params
                                            : find_buffer(address);
    if (address % (Word)bytes) {
        report(&at, "misaligned address", thread, address);
        return nullptr;
    }
    Word place = region ? address - region->base : 0;
    const size_t size = !region ? 0 : space == LOCAL ? kernel.local_bytes : region->size;
    bool inside = region && place < size && (Word)bytes <= size - place;
    if (space == LOCAL)
        place += thread * kernel.local_bytes;
    for (int i = 0; inside && i < bytes; i++)
        inside = region->shadow[place + (Word)i].state != GAP;
    if (!inside) {
        report(&at, "out of bounds", thread, address);
        return nullptr;
    }
    *shadow = &region->shadow[place];
    return region->bytes + place;
}

Word Block::address_of(Warp &warp, const Instruction &at, int lane) {
    const Word address = warp.values(at.base)[lane] + (Word)at.offset;
    if (warp.undefined[at.base] >> lane & 1)
        report(&at, "an address depends on undefined data", warp.first + (unsigned)lane);
    return at.space == GLOBAL || at.space == GENERIC ? address : (uint32_t)address;
}

void Block::load(Warp &warp, const Instruction &at, int lane) {
    const unsigned thread = warp.first + (unsigned)lane;
    const Word address = address_of(warp, at, lane);
    Byte *shadow = nullptr;
    const uint8_t *const from = find(at, thread, at.space, address, at.bytes * (int)at.out.size(), &shadow);
    for (size_t k = 0; k < at.out.size(); k++) {
        Word value = 0;
        bool undefined = !from;
        for (int i = 0; from && i < at.bytes; i++) {
            Byte &byte = shadow[k * (size_t)at.bytes + (size_t)i];
            value |= (Word)from[k * (size_t)at.bytes + (size_t)i] << (8 * i);
            undefined |= byte.state != DEFINED;
            if (byte.state == PENDING)
                report(&at, "read of a copy before the wait for it", thread, address);
            if (at.uniform && byte.written >= launch_epoch)
                report(&at, "ld.global.nc of what this launch writes", thread, address);
            if (at.space == PARAM)
                continue;
            if (const char *const race = note_read(byte, thread))
                report(&at, race, thread, address);
        }
        const int unused = 64 - 8 * at.bytes;
        warp.values(at.out[k])[lane] = at.is_signed ? (Word)((int64_t)(value << unused) >> unused) : value;
        warp.define(at.out[k], 1u << lane, undefined ? ~0u : 0u);
    }
}

void Block::store(Warp &warp, const Instruction &at, int lane) {
    const unsigned thread = warp.first + (unsigned)lane;
    const Word address = address_of(warp, at, lane);
    Byte *shadow = nullptr;
    uint8_t *const to = find(at, thread, at.space, address, at.bytes * (int)at.in.size(), &shadow);
    for (size_t k = 0; to && k < at.in.size(); k++) {
        const bool undefined = warp.undefined[at.in[k]] >> lane & 1;
        if (undefined && at.space == GLOBAL)
            report(&at, "undefined data is stored to global memory", thread, address);
        for (int i = 0; i < at.bytes; i++) {
            Byte &byte = shadow[k * (size_t)at.bytes + (size_t)i];
            to[k * (size_t)at.bytes + (size_t)i] = (uint8_t)(warp.values(at.in[k])[lane] >> (8 * i));
            if (byte.state == PENDING)
                report(&at, "write to a copy before the wait for it", thread, address);
            if (const char *const race = note_write(byte, thread))
                report(&at, race, thread, address);
            byte.state = undefined ? UNDEFINED : DEFINED;
        }
    }
}

/* The target is poison until the wait. */
void Block::copy(Warp &warp, const Instruction &at, int lane) {
    const unsigned thread = warp.first + (unsigned)lane;
    const Word from = address_of(warp, at, lane), to = (uint32_t)warp.values(at.in[0])[lane];
    if (warp.undefined[at.in[0]] >> lane & 1)
        report(&at, "an address depends on undefined data", thread);
    Byte *source = nullptr, *target = nullptr;
    uint8_t *const bytes = find(at, thread, SHARED, to, at.bytes, &target);
    if (!bytes || !find(at, thread, GLOBAL, from, at.bytes, &source))
        return;
    for (int i = 0; i < at.bytes; i++) {
        if (source[i].state != DEFINED)
            report(&at, "copy of undefined data", thread, from);
        if (target[i].state == PENDING)
            report(&at, "copy over a copy that is under way", thread, to);
        const char *race = note_read(source[i], thread);
        race = race ? race : note_write(target[i], thread);
        if (race)
            report(&at, race, thread, to);
        target[i].state = PENDING;
        bytes[i] = 0xcd;
    }
    copies[thread].push_back({to, from, at.bytes, groups[thread]});
}

/* The copies of a thread that its wait is for. */
void Block::deliver(const Instruction &at, unsigned thread) {
    const bool all = at.opcode == "cp.async.wait_all";
    std::vector<Copy> left;
    for (const Copy &copy : copies[thread]) {
        if (!all && copy.group + (unsigned)at.number >= groups[thread]) {
            left.push_back(copy);
            continue;
        }
        Byte *const target = &shared.shadow[copy.to - SHARED_BASE];
        const Region *const source = find_buffer(copy.from);
        memcpy(&shared.bytes[copy.to - SHARED_BASE], source->bytes + (copy.from - source->base), (size_t)copy.bytes);
        for (int i = 0; i < copy.bytes; i++) {
            target[i].state = DEFINED;
            target[i].written = epoch;
            target[i].writer = (uint16_t)thread;
        }
    }
    copies[thread] = left;
}

} // namespace ptx
