#include "bench/program.h"

#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "bench/child.h"

namespace spanpool::bench {

Program::Program(const std::vector<std::string>& arguments,
                 const testing::Process::Options& options)
    : name_(arguments[0]), process_(arguments, options) {}

Program::~Program() {
  process_.CloseInput();
  process_.Wait();
}

absl::Status Program::Ready() {
  const absl::StatusOr<std::string> answer = Answer();
  if (!answer.ok()) return answer.status();
  if (*answer == "READY") return absl::OkStatus();
  return absl::InternalError(absl::StrCat(name_, " greeted with \"", *answer, "\""));
}

absl::StatusOr<std::string> Program::Ask(const std::string& command) {
  process_.WriteLine(command);
  return Answer();
}

absl::StatusOr<std::string> Program::Answer() {
  const std::optional<std::string> line = process_.ReadLine();
  if (!line) {
    return absl::AbortedError(
        absl::StrCat(name_, " ended, or hangs: ", LastLine(process_.standard_error())));
  }
  absl::string_view text = *line;
  if (absl::ConsumePrefix(&text, "ABSENT ")) return absl::UnavailableError(text);
  return *line;
}

}  // namespace spanpool::bench
