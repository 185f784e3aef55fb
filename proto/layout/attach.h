// The attach protocol: the messages on DIR/attach.sock, a unix SOCK_SEQPACKET socket.
//
// clang-format off
//   client                                daemon
//     AttachRequest  ───────────────────▶   checks version, SO_PEERCRED, access list
//     ◀───────────  AttachReply + 2 fds     session segment read-write, control read-only
//     ArenaRequest(k)  ─────────────────▶
//     ◀──────────  ArenaReply(k) + 2 fds    arena data, block table
//     ◀────────────────  RecallNotice(n)    at any time after the AttachReply
//     RecallAnswer(n)  ─────────────────▶   what was idle has been returned
//     ◀────────────────  ResumedNotice      another worker has taken over
//     DetachRequest  ───────────────────▶   spans were returned, slots are free: it ends
//     ◀─────────────────────  DetachReply
// clang-format on
//
// The connection is the session's lifeline: it stays open as long as the client uses the pool. Its
// end detaches the session; memory is reused only when the client's process is dead.
//
// A worker of the daemon that dies leaves the connection open: its successor goes on with it. The
// first thing it does is to send a ResumedNotice; only then does it read. So a reply that comes
// after the notice is to a request that the successor read. A request that has no reply when the
// notice comes may be lost with the worker that read it, or still be under way: the client sends it
// again, and ignores a second reply, which it tells by its type and arena.
//
// The client sends one request at a time and waits for its reply; the daemon sends the next
// RecallNotice only when the last was answered. So it never has more than one reply and a few
// notices under way and never waits for a client to read. One message is one packet of exactly its
// struct's size. Anything else (any other size, magic, type, version or order, or a request while
// replies are unread) is answered with a refusal where there is a reply to put it in; the session
// is evicted and the connection closed.
//
// Integers are host-endian: both ends share the machine.

#ifndef SPANPOOL_PROTO_LAYOUT_ATTACH_H_
#define SPANPOOL_PROTO_LAYOUT_ATTACH_H_

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace spanpool::layout {

inline constexpr uint32_t kAttachMagic = 0x4c505053;  // "SPPL"
// Raised whenever any struct or rule under proto/layout/ changes.
inline constexpr uint32_t kLayoutVersion = 4;

inline constexpr size_t kPoolNameBytes = 64;  // with the terminating zero
inline constexpr size_t kMessageBytes = 320;
inline constexpr size_t kTokenBytes = 16;

enum class AttachType : uint32_t {
  kAttachRequest = 1,
  kAttachReply = 2,
  kArenaRequest = 3,
  kArenaReply = 4,
  kDetachRequest = 5,
  kDetachReply = 6,
  kRecallNotice = 7,
  kRecallAnswer = 8,
  kResumedNotice = 9,
};

enum class AccessMode : uint32_t { kRead = 1, kWrite = 2 };

struct AttachHeader {
  uint32_t magic = kAttachMagic;
  AttachType type{};
  uint32_t version = kLayoutVersion;
  uint32_t reserved = 0;
};

struct AttachRequest {
  AttachHeader header{.type = AttachType::kAttachRequest};
  char pool[kPoolNameBytes] = {};  // zero-terminated
  AccessMode access = AccessMode::kWrite;
  uint32_t reserved = 0;
};

// `code` is a canonical status code; 0 = OK, and only then are the other fields and fds there.
struct AttachReply {
  AttachHeader header{.type = AttachType::kAttachReply};
  int32_t code = 0;
  uint32_t session_id = 0;  // unique in the life of the pool incarnation
  uint8_t token[kTokenBytes] = {};
  uint32_t incarnation = 0;          // of the pool; in every handle
  uint32_t slot_capacity = 0;        // slots in the session segment
  uint64_t limit_bytes = 0;          // most that the pool lends at one time
  uint64_t address_bytes = 0;        // every arena lies below this offset: reserve so much
  char message[kMessageBytes] = {};  // why not, and what to do; zero-terminated
};

struct ArenaRequest {
  AttachHeader header{.type = AttachType::kArenaRequest};
  uint32_t arena = 0;
  uint32_t reserved = 0;
};

// With code 0, two descriptors come along: the arena's data, then its block table.
struct ArenaReply {
  AttachHeader header{.type = AttachType::kArenaReply};
  int32_t code = 0;
  uint32_t arena = 0;
  char message[kMessageBytes] = {};
};

struct DetachRequest {
  AttachHeader header{.type = AttachType::kDetachRequest};
};

// FAILED_PRECONDITION: spans are still on loan or slots not free; the session stays attached.
struct DetachReply {
  AttachHeader header{.type = AttachType::kDetachReply};
  int32_t code = 0;
  uint32_t reserved = 0;
  char message[kMessageBytes] = {};
};

// Memory is short, or an operator wants it back: the client gives back what it does not use. It is
// asked, not made to: what is in use stays, and a client that does not answer loses nothing.
struct RecallNotice {
  AttachHeader header{.type = AttachType::kRecallNotice};
  uint64_t recall = 0;  // numbers the recall; only grows
  uint64_t bytes = 0;   // how much would do; UINT64_MAX = all that is idle
};

// To the notice of the same number, once what was idle has been returned (over Exchange). An answer
// to anything but the notice that is under way ends the connection.
struct RecallAnswer {
  AttachHeader header{.type = AttachType::kRecallAnswer};
  uint64_t recall = 0;
};

// A worker has taken over from one that ended, and serves. The client opens a new Exchange stream
// at once, with its inventory (spanpool/v1/pool.proto). A recall that was under way is over; an
// answer to it is ignored.
struct ResumedNotice {
  AttachHeader header{.type = AttachType::kResumedNotice};
  uint32_t incarnation = 0;  // of the pool: as it was
  uint32_t reserved = 0;
};

template <typename T>
inline constexpr bool kIsWire = std::is_standard_layout_v<T>&& std::is_trivially_copyable_v<T>&&
    std::has_unique_object_representations_v<T>;
static_assert(kIsWire<AttachHeader> && sizeof(AttachHeader) == 16);
static_assert(kIsWire<AttachRequest> && sizeof(AttachRequest) == 88);
static_assert(kIsWire<AttachReply> && sizeof(AttachReply) == 384);
static_assert(kIsWire<ArenaRequest> && sizeof(ArenaRequest) == 24);
static_assert(kIsWire<ArenaReply> && sizeof(ArenaReply) == 344);
static_assert(kIsWire<DetachRequest> && sizeof(DetachRequest) == 16);
static_assert(kIsWire<DetachReply> && sizeof(DetachReply) == 344);
static_assert(kIsWire<RecallNotice> && sizeof(RecallNotice) == 32);
static_assert(kIsWire<RecallAnswer> && sizeof(RecallAnswer) == 24);
static_assert(kIsWire<ResumedNotice> && sizeof(ResumedNotice) == 24);

inline constexpr size_t kMaxAttachMessageBytes = sizeof(AttachReply);

}  // namespace spanpool::layout

#endif  // SPANPOOL_PROTO_LAYOUT_ATTACH_H_
