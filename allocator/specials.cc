#include "allocator/specials.h"

#include "absl/strings/str_cat.h"
#include "allocator/check.h"

namespace spanpool {

SpecialRecord** Specials::Find(Span* span, uint32_t block, SpecialKind kind) {
  SpecialRecord** link = &span->specials;
  while (*link != nullptr &&
         ((*link)->block < block || ((*link)->block == block && (*link)->kind < kind))) {
    link = &(*link)->next;
  }
  return link;
}

absl::Status Specials::Add(Span* span, uint32_t block, SpecialKind kind, uint64_t value) {
  if (block >= span->blocks) {
    return absl::OutOfRangeError(
        absl::StrCat("block ", block, " of a span that has ", span->blocks));
  }
  RankedMutexLock lock(&mu_);
  SpecialRecord** const link = Find(span, block, kind);
  if (*link != nullptr && (*link)->block == block && (*link)->kind == kind) {
    return absl::AlreadyExistsError(
        absl::StrCat("block ", block, " has a special of kind ", static_cast<int>(kind)));
  }
  SpecialRecord* const record = records_.Alloc();
  if (record == nullptr) return absl::ResourceExhaustedError("no memory for a special");
  *record = {block, kind, value, *link};
  *link = record;
  map_->SetSpecials(*span, true);
  return absl::OkStatus();
}

bool Specials::Remove(Span* span, uint32_t block, SpecialKind kind) {
  RankedMutexLock lock(&mu_);
  SpecialRecord** const link = Find(span, block, kind);
  SpecialRecord* const record = *link;
  if (record == nullptr || record->block != block || record->kind != kind) return false;
  *link = record->next;
  records_.Free(record);
  if (span->specials == nullptr) map_->SetSpecials(*span, false);
  return true;
}

std::vector<FreedBlock> Specials::TakeDue(Span* span) {
  std::vector<FreedBlock> due;
  if (!map_->HasSpecials(*span)) return due;
  RankedMutexLock lock(&mu_);
  SpecialRecord** link = &span->specials;
  while (SpecialRecord* const record = *link) {
    if ((span->bits()[record->block / 64] >> (record->block % 64) & 1) != 0) {
      link = &record->next;
      continue;
    }
    due.push_back({span->first_page, record->block, record->kind, record->value});
    *link = record->next;
    records_.Free(record);
  }
  if (span->specials == nullptr) map_->SetSpecials(*span, false);
  return due;
}

void Specials::Report(absl::Span<const FreedBlock> due) {
  if (!due.empty() && listener_ != nullptr) listener_->OnFreed(due);
}

uint64_t Specials::metadata_bytes() const {
  RankedMutexLock lock(&mu_);
  return memory_.committed_bytes();
}

uint64_t Specials::size() const {
  RankedMutexLock lock(&mu_);
  return records_.in_use();
}

uint64_t Specials::CheckInvariants(const Span& span) const {
  RankedMutexLock lock(&mu_);
  uint64_t records = 0;
  SPANPOOL_CHECK_EQ(map_->HasSpecials(span), span.specials != nullptr);
  for (const SpecialRecord* record = span.specials; record != nullptr; record = record->next) {
    SPANPOOL_CHECK_LT(record->block, span.blocks);
    const SpecialRecord* const next = record->next;
    SPANPOOL_CHECK(next == nullptr || record->block < next->block ||
                   (record->block == next->block && record->kind < next->kind));
    ++records;
  }
  return records;
}

}  // namespace spanpool
