// Aborts for what only a bug of ours can cause.
//
//   SPANPOOL_CHECK(condition)   always on: memory safety hangs on it
//   SPANPOOL_DCHECK(condition)  in debug and sanitizer builds only
//
// What a peer, a client or the system can cause is never checked this way: it becomes a Status.

#ifndef SPANPOOL_ALLOCATOR_CHECK_H_
#define SPANPOOL_ALLOCATOR_CHECK_H_

#include <cstdio>
#include <cstdlib>

namespace spanpool::internal {

[[noreturn, gnu::cold, gnu::noinline]] inline void CheckFailed(const char* file, int line,
                                                               const char* condition) {
  std::fprintf(stderr, "%s:%d: check failed: %s\n", file, line, condition);
  std::abort();
}

}  // namespace spanpool::internal

#define SPANPOOL_CHECK(condition)                       \
  (__builtin_expect(static_cast<bool>(condition), true) \
       ? static_cast<void>(0)                           \
       : ::spanpool::internal::CheckFailed(__FILE__, __LINE__, #condition))

#ifdef SPANPOOL_DEBUG
#define SPANPOOL_DCHECK(condition) SPANPOOL_CHECK(condition)
#else
#define SPANPOOL_DCHECK(condition) static_cast<void>(false && (condition))
#endif

#endif  // SPANPOOL_ALLOCATOR_CHECK_H_
