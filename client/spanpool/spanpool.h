// spanpool: memory that many processes share, allocated in nanoseconds.
//
// In one process, to write into shared memory and name it in 16 bytes:
//
//   auto session = spanpool::Session::Attach({});
//   auto buffer = (*session)->Allocate(1 << 20);
//   auto handle = buffer->Share();
//
// In another, which got the handle by any means, to have the same bytes without a copy:
//
//   auto same = (*session)->Open(*handle);
//
// This header is all a user includes. Reading order: session.h, buffer.h, handle.h, names.h,
// channel.h, options.h.

#ifndef SPANPOOL_SPANPOOL_H_
#define SPANPOOL_SPANPOOL_H_

#include "spanpool/buffer.h"
#include "spanpool/channel.h"
#include "spanpool/handle.h"
#include "spanpool/names.h"
#include "spanpool/options.h"
#include "spanpool/session.h"

#endif  // SPANPOOL_SPANPOOL_H_
