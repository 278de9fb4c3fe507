/* Memory that knows who touched it: bounds, alignment, defined bytes, races; and what the instructions do with it. */
#include "ptx.h"

#include <cstring>

namespace ptx {

Times times;
uint32_t launch_number;
std::map<Word, Region> buffers;
std::vector<Region> recorded;
bool recording;

void Region::resize(Word at, size_t count, State state) {
    base = at;
    size = count;
    own.assign(count, 0xcd);
    bytes = own.data();
    shadow.assign(count, Byte());
    for (Byte &byte : shadow)
        byte.state = state;
}

/* In place of a reader: LANES + w are several of warp w, SEVERAL are of several warps, BLOCKS of several blocks. */
enum : uint16_t { LANES = 1024, BLOCKS = 0xfffe, SEVERAL = 0xffff };

static unsigned warp_of(unsigned who) {
    return who < LANES ? who / WARP : who - LANES;
}

/* Whether a thread does not know that an access is over: it was another's, of another block, of another warp since the
 * last barrier of the block, or of this warp since its own last one. */
static bool is_open(uint32_t when, unsigned who, unsigned thread) {
    return when >= times.launch &&
           (when < times.block || who == BLOCKS ||
            (when >= times.barrier && who != thread && (warp_of(who) != warp_of(thread) || when >= times.warp)));
}

static bool read_races(Byte &byte, unsigned thread) {
    if (!is_open(byte.read, byte.reader, thread))
        byte.reader = (uint16_t)thread;
    else if (byte.read < times.block)
        byte.reader = BLOCKS;
    else if (byte.reader != BLOCKS)
        byte.reader = (uint16_t)(warp_of(byte.reader) == warp_of(thread) ? LANES + warp_of(thread) : (unsigned)SEVERAL);
    byte.read = times.now;
    return is_open(byte.written, byte.writer, thread);
}

/* What the host has put into a buffer by the time of the first launch that uses it: all that lies in its rows, unless
 * nothing has been put there, which poison tells. Less than 8 bytes could be poison by chance. */
static void look_at(Region &buffer) {
    bool poison = buffer.size >= 8;
    for (size_t i = 0; i < buffer.size && poison; i++)
        poison = buffer.bytes[i] == 0xcd;
    buffer.shadow.resize(buffer.size);
    for (size_t i = 0; i < buffer.size && !poison; i++)
        buffer.shadow[i].state = i % buffer.step < buffer.row_bytes ? DEFINED : UNDEFINED;
}

static Region *find_buffer(Word address) {
    const auto after = buffers.upper_bound(address);
    if (after == buffers.begin() || address - std::prev(after)->first >= std::prev(after)->second.size)
        return nullptr;
    Region &buffer = std::prev(after)->second;
    if (buffer.shadow.empty())
        look_at(buffer);
    if (buffer.touched != launch_number && recording) {
        recorded.push_back(buffer);
        recorded.back().own.assign(buffer.bytes, buffer.bytes + buffer.size);
    }
    buffer.touched = launch_number;
    return &buffer;
}

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

/* A thread reads or writes bytes: where they are, or null after a fault, and what is known of each. */
uint8_t *Block::touch(const Instruction &at, unsigned thread, Space space, Word address, size_t bytes, bool write,
                      Byte **shadow) {
    if (space == GENERIC) {
        const Word window = address & WINDOW_MASK;
        space = window == SHARED_WINDOW ? SHARED : window == LOCAL_WINDOW ? LOCAL : GLOBAL;
        address -= space == GLOBAL ? 0 : window;
    }
    address = space == GLOBAL ? address : (uint32_t)address;
    Region *const region = space == SHARED  ? &shared
                           : space == LOCAL ? &local[thread]
                           : space == PARAM ? &params
                                            : find_buffer(address);
    const Word place = region ? address - region->base : 0;
    bool inside = region && place < region->size && bytes <= region->size - place;
    for (size_t i = 0; inside && i < bytes; i++)
        inside = region->shadow[place + i].state != GAP;
    if (address % bytes || !inside) {
        report(&at, address % bytes ? "misaligned address" : "out of bounds", thread, address);
        return nullptr;
    }
    *shadow = &region->shadow[place];
    for (size_t i = 0; i < bytes; i++) {
        Byte &byte = (*shadow)[i];
        if (byte.state == PENDING)
            report(&at, write ? "write to a copy that is under way" : "read of a copy before the wait for it", thread,
                   address);
        if (at.uniform && byte.written >= times.launch)
            report(&at, "ld.global.nc of what this launch writes", thread, address);
        if (write && is_open(byte.read, byte.reader, thread))
            report(&at, "race: write of what another thread reads", thread, address);
        if (write ? is_open(byte.written, byte.writer, thread) : read_races(byte, thread))
            report(&at,
                   write ? "race: write of what another thread writes" : "race: read of what another thread writes",
                   thread, address);
        if (write)
            byte.written = times.now, byte.writer = (uint16_t)thread;
    }
    return region->bytes + place;
}

/* That the register `base` and the offset make. */
Word Block::address_of(Warp &warp, const Instruction &at, int base, int64_t offset, unsigned lane) {
    if (warp.undefined[base] >> lane & 1)
        report(&at, "an address depends on undefined data", warp.first + lane);
    return warp.values(base)[lane] + (Word)offset;
}

void Block::load(Warp &warp, const Instruction &at, unsigned lane) {
    const size_t bytes = (size_t)at.bytes;
    const int unused = 64 - 8 * at.bytes;
    Byte *shadow = nullptr;
    const Word address = address_of(warp, at, at.base, at.offset, lane);
    const uint8_t *const from = touch(at, warp.first + lane, at.space, address, bytes * at.out.size(), false, &shadow);
    for (size_t k = 0; k < at.out.size(); k++) {
        Word value = 0;
        bool undefined = !from;
        if (from)
            memcpy(&value, from + k * bytes, bytes);
        for (size_t i = 0; from && i < bytes; i++)
            undefined |= shadow[k * bytes + i].state != DEFINED;
        warp.values(at.out[k])[lane] = at.is_signed ? (Word)((int64_t)(value << unused) >> unused) : value;
        warp.define(at.out[k], 1u << lane, undefined ? ~0u : 0u);
    }
}

void Block::store(Warp &warp, const Instruction &at, unsigned lane) {
    const size_t bytes = (size_t)at.bytes;
    Byte *shadow = nullptr;
    const Word address = address_of(warp, at, at.base, at.offset, lane);
    uint8_t *const to = touch(at, warp.first + lane, at.space, address, bytes * at.in.size(), true, &shadow);
    for (size_t k = 0; to && k < at.in.size(); k++) {
        const bool undefined = warp.undefined[at.in[k]] >> lane & 1;
        if (undefined && at.space == GLOBAL)
            report(&at, "undefined data is stored to global memory", warp.first + lane, address);
        memcpy(to + k * bytes, &warp.values(at.in[k])[lane], bytes);
        for (size_t i = 0; i < bytes; i++)
            shadow[k * bytes + i].state = undefined ? UNDEFINED : DEFINED;
    }
}

/* The target is poison until the wait. */
void Block::copy(Warp &warp, const Instruction &at, unsigned lane) {
    const unsigned thread = warp.first + lane;
    const Word from = address_of(warp, at, at.base, at.offset, lane);
    const Word to = (uint32_t)address_of(warp, at, at.in[0], 0, lane);
    Byte *source = nullptr, *target = nullptr;
    uint8_t *const bytes = touch(at, thread, SHARED, to, COPY_BYTES, true, &target);
    const uint8_t *const read = touch(at, thread, GLOBAL, from, COPY_BYTES, false, &source);
    if (!bytes || !read)
        return;
    for (size_t i = 0; i < COPY_BYTES; i++) {
        if (source[i].state != DEFINED)
            report(&at, "copy of undefined data", thread, from);
        target[i].state = PENDING;
    }
    memset(bytes, 0xcd, COPY_BYTES);
    copies[thread].push_back({to - SHARED_BASE, read, groups[thread]});
}

/* The copies of a thread that its wait is for: all groups but the last ones. */
void Block::deliver(const Instruction &at, unsigned thread) {
    std::erase_if(copies[thread], [&](const Copy &copy) {
        if (copy.group + (unsigned)at.number >= groups[thread])
            return false;
        memcpy(&shared.bytes[copy.to], copy.from, COPY_BYTES);
        for (size_t i = 0; i < COPY_BYTES; i++) {
            Byte &byte = shared.shadow[copy.to + i];
            byte.state = DEFINED, byte.written = times.now, byte.writer = (uint16_t)thread;
        }
        return true;
    });
}

} // namespace ptx
