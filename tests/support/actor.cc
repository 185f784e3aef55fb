#include "tests/support/actor.h"

#include <gtest/gtest.h>

#include <optional>
#include <string>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"

namespace spanpool::testing {

Actor::Actor(const Process::Options& options)
    : process_({Runfile("tests/support/actor_main")}, options) {}

Actor Actor::WithSteps() { return Actor(Process({Runfile("tests/support/stepping_actor_main")})); }

absl::StatusOr<std::string> Actor::Do(const std::string& command) {
  Begin(command);
  absl::StatusOr<std::string> answer = End();
  if (answer.ok()) return answer;
  return absl::Status(answer.status().code(),
                      absl::StrCat(command, ": ", answer.status().message()));
}

absl::StatusOr<std::string> Actor::End() {
  const std::optional<std::string> line = process_.ReadLine();
  if (!line.has_value()) {
    return absl::UnavailableError(absl::StrCat("no answer\n", process_.standard_error()));
  }
  absl::string_view answer = *line;
  if (absl::ConsumePrefix(&answer, "ok")) {
    absl::ConsumePrefix(&answer, " ");
    return std::string(answer);
  }
  // "error CODE message"
  absl::ConsumePrefix(&answer, "error ");
  const size_t space = answer.find(' ');
  int code = 0;
  if (!absl::SimpleAtoi(answer.substr(0, space), &code)) {
    return absl::InternalError(absl::StrCat("the actor answered '", *line, "'"));
  }
  return absl::Status(static_cast<absl::StatusCode>(code), answer.substr(space + 1));
}

std::string Actor::Must(const std::string& command) {
  absl::StatusOr<std::string> answer = Do(command);
  EXPECT_TRUE(answer.ok()) << command << ": " << answer.status();
  return answer.value_or("");
}

}  // namespace spanpool::testing
