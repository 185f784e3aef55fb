// spanpool: memory that many processes share, allocated in nanoseconds.
//
//   auto session = spanpool::Session::Attach({});        // the daemon on this machine
//   auto buffer = (*session)->Allocate(1 << 20);         // a Buffer: 1 MiB of shared memory
//   auto handle = buffer->Share();                       // 16 bytes for another process, which
//   says auto same = (*session)->Open(*handle);               // and has the same bytes, no copy
//
// This header is all a user includes. Reading order: session.h, buffer.h, handle.h, options.h.

#ifndef SPANPOOL_SPANPOOL_H_
#define SPANPOOL_SPANPOOL_H_

#include "spanpool/buffer.h"
#include "spanpool/handle.h"
#include "spanpool/options.h"
#include "spanpool/session.h"

#endif  // SPANPOOL_SPANPOOL_H_
