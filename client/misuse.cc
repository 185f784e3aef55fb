#include "client/misuse.h"

#include <cstdio>
#include <utility>

namespace spanpool::internal {
namespace {

const char* Describe(Misuse::Kind kind) {
  switch (kind) {
    case Misuse::Kind::kForeignPointer:
      return "Free of a pointer that is no block of this session";
    case Misuse::Kind::kInteriorPointer:
      return "Free of a pointer into the middle of a block";
    case Misuse::Kind::kDoubleFree:
      return "Free of a block that is free already";
  }
  return "misuse";
}

}  // namespace

void MisuseReporter::SetHandler(MisuseHandler handler) {
  auto shared = handler ? std::make_shared<const MisuseHandler>(std::move(handler)) : nullptr;
  RankedMutexLock lock(&mu_);
  handler_.swap(shared);
}

void MisuseReporter::Report(Misuse::Kind kind, const void* pointer, const void* call_site) {
  std::shared_ptr<const MisuseHandler> handler;
  bool log = false;
  {
    RankedMutexLock lock(&mu_);
    ++count_;
    handler = handler_;
    if (handler == nullptr) log = logged_sites_.insert(call_site).second;
  }
  const Misuse misuse{kind, pointer, call_site, Describe(kind)};
  if (handler != nullptr) {
    (*handler)(misuse);
  } else if (log) {
    std::fprintf(stderr, "spanpool: %s: %p, called from %p; the call did nothing\n", Describe(kind),
                 pointer, call_site);
  }
}

uint64_t MisuseReporter::count() const {
  RankedMutexLock lock(&mu_);
  return count_;
}

}  // namespace spanpool::internal
