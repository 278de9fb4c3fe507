/* Memory that knows who touched it: bounds, defined bytes, races. */
#include "ptx.h"

#include <cstring>

namespace ptx {

uint32_t launch_number, epoch = 1, launch_epoch = 1, block_epoch = 1;
std::map<Word, Region> buffers;
std::vector<Region> recorded;
bool recording;

enum : uint16_t { SEVERAL = 0xffff, BLOCKS = 0xfffe }; /* readers of one epoch, or of several blocks */

void Region::resize(Word at, size_t count, State state) {
    base = at;
    size = count;
    own.assign(count, 0xcd);
    bytes = own.data();
    shadow.assign(count, Byte());
    for (Byte &byte : shadow)
        byte.state = state;
}

/* Whether a thread does not know that an access is over: it was another's, of this block since the last barrier, or of
 * another block. */
static bool open(uint32_t when, unsigned who, unsigned thread) {
    return when >= launch_epoch && (when < block_epoch || (when == epoch && who != thread));
}

const char *note_read(Byte &byte, unsigned thread) {
    const bool race = open(byte.written, byte.writer, thread);
    if (byte.read < launch_epoch)
        byte.reader = (uint16_t)thread;
    else if (byte.read < block_epoch)
        byte.reader = BLOCKS;
    else if (byte.reader != BLOCKS)
        byte.reader = byte.read == epoch && byte.reader != thread ? (uint16_t)SEVERAL : (uint16_t)thread;
    byte.read = epoch;
    return race ? "race: read of what another thread writes" : nullptr;
}

const char *note_write(Byte &byte, unsigned thread) {
    const bool after_write = open(byte.written, byte.writer, thread);
    const bool after_read =
        open(byte.read, byte.reader, thread) || (byte.reader == BLOCKS && byte.read >= launch_epoch);
    byte.written = epoch;
    byte.writer = (uint16_t)thread;
    return after_write  ? "race: write of what another thread writes"
           : after_read ? "race: write of what another thread reads"
                        : nullptr;
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

Region *find_buffer(Word address) {
    auto found = buffers.upper_bound(address);
    if (found == buffers.begin())
        return nullptr;
    Region &buffer = (--found)->second;
    if (address - buffer.base >= buffer.size)
        return nullptr;
    if (buffer.shadow.empty())
        look_at(buffer);
    if (buffer.touched != launch_number) {
        buffer.touched = launch_number;
        if (recording) {
            recorded.push_back(buffer);
            recorded.back().own.assign(buffer.bytes, buffer.bytes + buffer.size);
        }
    }
    return &buffer;
}

} // namespace ptx
