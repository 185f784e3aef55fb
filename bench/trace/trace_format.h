// The file format of allocation traces: what a program asked its allocator for, and in which order.
//
//   bytes 0 … 15   Header: "SPTRACE1", then the number of bytes that follow (little endian)
//   then           events, each a varint v (7 bits a byte, lowest first, top bit = more follow):
//     v & 3 == 0   allocates v >> 2 bytes; the n-th allocation of the trace has id n, from 0
//     v & 3 == 1   frees: of all ids given out so far the one v >> 2 before the last
//     v & 3 == 2   allocates v >> 2 bytes at a multiple of 2^k; k is the byte that follows
//
// Most frees are of something allocated a moment ago, so most events take one or two bytes. A block
// that is moved by realloc is an allocation, and then a free. Blocks that are never freed in the
// trace stay allocated to its end.
//
// Header-only and free of allocation: the recorder runs inside malloc.

#ifndef SPANPOOL_BENCH_TRACE_TRACE_FORMAT_H_
#define SPANPOOL_BENCH_TRACE_TRACE_FORMAT_H_

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace spanpool::bench {

struct TraceHeader {
  char magic[8];
  uint64_t event_bytes;
};
static_assert(sizeof(TraceHeader) == 16);
inline constexpr char kTraceMagic[] = "SPTRACE1";
inline constexpr size_t kMaxEventBytes = 11;  // a varint of 64 bits and a byte

struct TraceEvent {
  enum class Kind : uint8_t { kAlloc = 0, kFree = 1, kAlignedAlloc = 2 };
  Kind kind;
  uint64_t value;  // bytes allocated, or the id freed
  uint8_t alignment_log2 = 0;
};

// Appends an event at `out`, which has room for kMaxEventBytes; returns the end. `next_id` is the
// id the next allocation will get; values have at most 62 bits.
inline unsigned char* PutEvent(const TraceEvent& event, uint64_t next_id, unsigned char* out) {
  uint64_t v = event.kind == TraceEvent::Kind::kFree ? next_id - 1 - event.value : event.value;
  v = v << 2 | static_cast<uint64_t>(event.kind);
  for (; v >= 0x80; v >>= 7) *out++ = static_cast<unsigned char>(v | 0x80);
  *out++ = static_cast<unsigned char>(v);
  if (event.kind == TraceEvent::Kind::kAlignedAlloc) *out++ = event.alignment_log2;
  return out;
}

// Reads events one after another. A trace may come from anywhere: Next refuses what is no event.
class TraceReader {
 public:
  TraceReader(const unsigned char* begin, size_t bytes) : next_(begin), end_(begin + bytes) {}

  // False at the end, or at an event that is broken; then broken() says which.
  bool Next(TraceEvent* event) {
    if (next_ == end_ || broken_) return false;
    uint64_t v = 0;
    int shift = 0;
    while (true) {
      if (next_ == end_ || shift > 63) return Broken();
      const unsigned char byte = *next_++;
      v |= static_cast<uint64_t>(byte & 0x7f) << shift;
      if (byte < 0x80) break;
      shift += 7;
    }
    event->value = v >> 2;
    event->alignment_log2 = 0;
    switch (v & 3) {
      case 0:
        event->kind = TraceEvent::Kind::kAlloc;
        break;
      case 1:
        event->kind = TraceEvent::Kind::kFree;
        if (event->value >= ids_) return Broken();
        event->value = ids_ - 1 - event->value;
        return true;
      case 2:
        event->kind = TraceEvent::Kind::kAlignedAlloc;
        if (next_ == end_ || *next_ > 30) return Broken();
        event->alignment_log2 = *next_++;
        break;
      default:
        return Broken();
    }
    ++ids_;
    return true;
  }

  bool broken() const { return broken_; }
  uint64_t ids() const { return ids_; }  // allocations read so far

 private:
  bool Broken() {
    broken_ = true;
    return false;
  }

  const unsigned char* next_;
  const unsigned char* end_;
  uint64_t ids_ = 0;
  bool broken_ = false;
};

}  // namespace spanpool::bench

#endif  // SPANPOOL_BENCH_TRACE_TRACE_FORMAT_H_
