// The two segments of a session as the daemon sees them: proto/layout/session_segment.h.
//
// The session segment is written by the client, and hostile: this class only says where slots are
// that may have been written, by asking the kernel which pages exist, not the client.
//
// Thread-safe: the object is constant, the memory is atomics.

#ifndef SPANPOOL_SERVER_SESSION_MEMORY_H_
#define SPANPOOL_SERVER_SESSION_MEMORY_H_

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "proto/layout/packet.h"
#include "proto/layout/session_segment.h"
#include "proto/layout/slot.h"

namespace spanpool {

class SessionMemory {
 public:
  // Creates both segments, sealed; the first page and 64 KiB of slots are backed by memory.
  //   RESOURCE_EXHAUSTED  no memory or descriptor left
  static absl::StatusOr<std::unique_ptr<SessionMemory>> Create(uint64_t daemon_epoch);
  // Takes over both from an earlier worker; `control` is open for writing, and gets the new epoch.
  //   DATA_LOSS           they are not what Create makes
  //   RESOURCE_EXHAUSTED  no addresses or descriptor left
  static absl::StatusOr<std::unique_ptr<SessionMemory>> Adopt(layout::UniqueFd session,
                                                              layout::UniqueFd control,
                                                              uint64_t daemon_epoch);
  ~SessionMemory();
  SessionMemory(const SessionMemory&) = delete;
  SessionMemory& operator=(const SessionMemory&) = delete;

  // To send to the client; owned by this object.
  int session_fd() const { return session_fd_.get(); }
  int control_read_only_fd() const { return control_read_only_fd_.get(); }
  // After they were sent.
  void CloseControlFd() { control_read_only_fd_.reset(); }
  // For a later worker, to keep; until it is closed.
  int control_fd() const { return control_fd_.get(); }
  void CloseWritableControlFd() { control_fd_.reset(); }

  layout::SharedSlot& slot(uint32_t index) { return slots_[index]; }
  layout::SlotNote& note(uint32_t index) { return notes_[index]; }

  struct SlotRange {
    uint32_t first = 0;
    uint32_t end = 0;  // first >= kSlotCapacity: no slot from `from` on was ever written
  };
  // The first run of slots at or after `from` that may have been written. Never empty, so that
  // whoever goes through them gets on, even if the client makes holes meanwhile.
  SlotRange WrittenSlots(uint32_t from) const;

 private:
  SessionMemory() = default;
  // Of descriptors that are what Create makes.
  static absl::StatusOr<std::unique_ptr<SessionMemory>> Map(layout::UniqueFd session,
                                                            layout::UniqueFd control,
                                                            uint64_t daemon_epoch);

  layout::UniqueFd session_fd_;
  layout::UniqueFd control_fd_;
  layout::UniqueFd control_read_only_fd_;
  layout::SessionSegment* segment_ = nullptr;
  layout::SharedSlot* slots_ = nullptr;
  layout::SlotNote* notes_ = nullptr;
};

}  // namespace spanpool

#endif  // SPANPOOL_SERVER_SESSION_MEMORY_H_
