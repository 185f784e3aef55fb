#include "server/long_step.h"

#include <utility>

#include "allocator/check.h"

namespace spanpool {
namespace {

constinit thread_local const LongStepHandler* current = nullptr;

}  // namespace

LongStepHandler::LongStepHandler(std::function<void()> handler) : handler_(std::move(handler)) {
  SPANPOOL_CHECK(current == nullptr) << "the thread has a handler";
  current = this;
}

LongStepHandler::~LongStepHandler() { current = nullptr; }

void AnnounceLongStep() {
  if (current != nullptr) current->handler_();
}

}  // namespace spanpool
