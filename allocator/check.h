// Aborts for what only our own bug can cause.
//
// What a peer or the environment can cause is an absl::Status; what a client may have written is
// input to be validated. What is left is a broken promise of our own code: SPANPOOL_CHECK stops the
// process before memory is handed out twice. It is always on; SPANPOOL_DCHECK is for what is too
// dear or too harmless for that, and is on in debug builds (SPANPOOL_DEBUG or no NDEBUG).
//
//   SPANPOOL_CHECK(span != nullptr) << "page " << page;
//   SPANPOOL_CHECK_EQ(list.size(), count);      // prints both operands
//
// prints `allocator/heap.cc:42: check failed: ... (1 vs. 2) text` on stderr and calls abort().

#ifndef SPANPOOL_ALLOCATOR_CHECK_H_
#define SPANPOOL_ALLOCATOR_CHECK_H_

#include <atomic>
#include <memory>
#include <ostream>
#include <sstream>
#include <string>
#include <type_traits>

#include "absl/base/optimization.h"

#if defined(SPANPOOL_DEBUG) || !defined(NDEBUG)
#define SPANPOOL_DCHECK_IS_ON 1
#else
#define SPANPOOL_DCHECK_IS_ON 0
#endif

namespace spanpool::check_internal {

// Collects the message; its end is the process's.
class Failure {
 public:
  Failure(const char* file, int line, const char* condition);
  Failure(const char* file, int line, const std::string& condition);
  [[noreturn]] ~Failure();
  std::ostream& stream() { return text_; }

 private:
  std::ostringstream text_;
};

// Lets both arms of ?: be void; binds weaker than <<.
struct Voidify {
  void operator&(std::ostream&) {}
};

template <typename T>
void Print(std::ostream& out, const T& value) {
  if constexpr (std::is_same_v<T, bool>) {
    out << (value ? "true" : "false");
  } else if constexpr (std::is_enum_v<T>) {
    out << +static_cast<std::underlying_type_t<T>>(value);
  } else if constexpr (std::is_integral_v<T>) {
    out << +value;
  } else if constexpr (std::is_same_v<T, std::nullptr_t>) {
    out << "null";
  } else if constexpr (requires { out << value; }) {
    out << value;
  } else {
    out << '<' << sizeof(T) << "-byte object>";
  }
}

template <typename A, typename B>
std::unique_ptr<std::string> Describe(const char* expression, const A& a, const B& b) {
  std::ostringstream out;
  out << expression << " (";
  Print(out, a);
  out << " vs. ";
  Print(out, b);
  out << ")";
  return std::make_unique<std::string>(out.str());
}

// Null when the comparison holds, else what to print.
#define SPANPOOL_DEFINE_CHECK_OP(name, op)                                                   \
  template <typename A, typename B>                                                          \
  std::unique_ptr<std::string> Check##name(const char* expression, const A& a, const B& b) { \
    if (ABSL_PREDICT_TRUE(a op b)) return nullptr;                                           \
    return Describe(expression, a, b);                                                       \
  }
SPANPOOL_DEFINE_CHECK_OP(Eq, ==)
SPANPOOL_DEFINE_CHECK_OP(Ne, !=)
SPANPOOL_DEFINE_CHECK_OP(Le, <=)
SPANPOOL_DEFINE_CHECK_OP(Lt, <)
SPANPOOL_DEFINE_CHECK_OP(Ge, >=)
SPANPOOL_DEFINE_CHECK_OP(Gt, >)
#undef SPANPOOL_DEFINE_CHECK_OP

}  // namespace spanpool::check_internal

#define SPANPOOL_CHECK(condition)           \
  ABSL_PREDICT_TRUE(condition)              \
  ? (void)0                                 \
  : ::spanpool::check_internal::Voidify() & \
          ::spanpool::check_internal::Failure(__FILE__, __LINE__, #condition).stream()

#define SPANPOOL_CHECK_OP_(name, op, a, b)                                         \
  while (auto spanpool_check_failed =                                              \
             ::spanpool::check_internal::Check##name(#a " " #op " " #b, (a), (b))) \
  ::spanpool::check_internal::Failure(__FILE__, __LINE__, *spanpool_check_failed).stream()

#define SPANPOOL_CHECK_EQ(a, b) SPANPOOL_CHECK_OP_(Eq, ==, a, b)
#define SPANPOOL_CHECK_NE(a, b) SPANPOOL_CHECK_OP_(Ne, !=, a, b)
#define SPANPOOL_CHECK_LE(a, b) SPANPOOL_CHECK_OP_(Le, <=, a, b)
#define SPANPOOL_CHECK_LT(a, b) SPANPOOL_CHECK_OP_(Lt, <, a, b)
#define SPANPOOL_CHECK_GE(a, b) SPANPOOL_CHECK_OP_(Ge, >=, a, b)
#define SPANPOOL_CHECK_GT(a, b) SPANPOOL_CHECK_OP_(Gt, >, a, b)

// The same in debug builds; otherwise compiled but not evaluated.
#if SPANPOOL_DCHECK_IS_ON
#define SPANPOOL_DCHECK(condition) SPANPOOL_CHECK(condition)
#define SPANPOOL_DCHECK_EQ(a, b) SPANPOOL_CHECK_EQ(a, b)
#define SPANPOOL_DCHECK_NE(a, b) SPANPOOL_CHECK_NE(a, b)
#define SPANPOOL_DCHECK_LE(a, b) SPANPOOL_CHECK_LE(a, b)
#define SPANPOOL_DCHECK_LT(a, b) SPANPOOL_CHECK_LT(a, b)
#define SPANPOOL_DCHECK_GE(a, b) SPANPOOL_CHECK_GE(a, b)
#define SPANPOOL_DCHECK_GT(a, b) SPANPOOL_CHECK_GT(a, b)
#else
#define SPANPOOL_DCHECK(condition) \
  while (false) SPANPOOL_CHECK(condition)
#define SPANPOOL_DCHECK_EQ(a, b) \
  while (false) SPANPOOL_CHECK_EQ(a, b)
#define SPANPOOL_DCHECK_NE(a, b) \
  while (false) SPANPOOL_CHECK_NE(a, b)
#define SPANPOOL_DCHECK_LE(a, b) \
  while (false) SPANPOOL_CHECK_LE(a, b)
#define SPANPOOL_DCHECK_LT(a, b) \
  while (false) SPANPOOL_CHECK_LT(a, b)
#define SPANPOOL_DCHECK_GE(a, b) \
  while (false) SPANPOOL_CHECK_GE(a, b)
#define SPANPOOL_DCHECK_GT(a, b) \
  while (false) SPANPOOL_CHECK_GT(a, b)
#endif

#endif  // SPANPOOL_ALLOCATOR_CHECK_H_
