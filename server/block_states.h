// What the heap wants to know of blocks, answered from the pool's block tables.
//
// Every word was written by clients: it is copied once and the copy is judged. A word that makes no
// sense (frozen, or freed with references) counts as in use, so the worst a lie does is to keep the
// span it stands in from being used again. In a span that is in quarantine every block does.
//
// Thread-safe for different spans, as BlockStates asks.

#ifndef SPANPOOL_SERVER_BLOCK_STATES_H_
#define SPANPOOL_SERVER_BLOCK_STATES_H_

#include <cstdint>

#include "absl/types/span.h"
#include "allocator/span.h"
#include "allocator/units.h"
#include "server/pool_arenas.h"
#include "server/quarantine.h"

namespace spanpool {

// The granule that names block `index` of `span`, whose blocks are 64 bytes or more.
GranuleId GranuleOfBlock(const Span& span, uint32_t index);

class TableBlockStates : public BlockStates {
 public:
  // Both outlive this object.
  TableBlockStates(PoolArenas* arenas, const Quarantine* quarantine)
      : arenas_(arenas), quarantine_(quarantine) {}

  uint32_t Sweep(const Span& span, absl::Span<uint64_t> in_use) override;

 private:
  PoolArenas* const arenas_;
  const Quarantine* const quarantine_;
};

}  // namespace spanpool

#endif  // SPANPOOL_SERVER_BLOCK_STATES_H_
