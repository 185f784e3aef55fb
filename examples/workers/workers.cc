// Worker processes that may be killed at any time, and a coordinator that loses no job by it.
//
//   workers JOBS              the coordinator; it kills a worker itself at every tenth answer
//   workers work JOBS ANSWERS a worker, as the coordinator starts it: the handles of two channels

#include <signal.h>
#include <spawn.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdint>
#include <deque>
#include <iostream>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/numbers.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "spanpool/spanpool.h"

namespace {

using spanpool::Buffer;
using spanpool::Channel;

constexpr size_t kWorkers = 3;
constexpr uint32_t kNumbers = 1 << 18;

// To add up numbers: 1 MiB of them in a job, which workers only read. Were they to write there, a
// worker killed half-way would leave a job that nobody can do again.
struct Job {
  uint32_t id;
  uint32_t numbers[kNumbers];
};
struct Answer {
  uint32_t id;
  uint64_t sum;
};

absl::Status Work(spanpool::Session& session, Channel& jobs, Channel& answers) {
  for (;;) {
    const absl::StatusOr<Buffer> job = jobs.Receive();
    if (absl::IsOutOfRange(job.status())) return absl::OkStatus();  // the coordinator is done
    if (!job.ok()) return job.status();
    absl::StatusOr<Buffer> answer = session.Allocate(sizeof(Answer));
    if (!answer.ok()) return answer.status();
    const auto* const asked = reinterpret_cast<const Job*>(job->data());
    uint64_t sum = 0;
    for (const uint32_t number : asked->numbers) sum += number;
    *reinterpret_cast<Answer*>(answer->data()) = {.id = asked->id, .sum = sum};
    if (absl::Status sent = answers.Send(*std::move(answer)); !sent.ok()) return sent;
  }
}

struct Worker {
  pid_t pid = 0;
  std::unique_ptr<Channel> jobs;  // to this worker alone: so it is known what died with it
  std::optional<uint32_t> job;    // what it was given and has not answered

  bool IsAlive() const { return pid != 0 && waitpid(pid, nullptr, WNOHANG) == 0; }

  absl::Status Start(spanpool::Session& session, const Channel& answers) {
    absl::StatusOr<std::unique_ptr<Channel>> channel = Channel::Create(session, 2);
    if (!channel.ok()) return channel.status();
    jobs = *std::move(channel);  // the channel to the dead worker goes, with what was left in it
    std::string to_it = jobs->handle().ToString();
    std::string from_it = answers.handle().ToString();
    std::array<char*, 5> arguments = {const_cast<char*>("workers"), const_cast<char*>("work"),
                                      to_it.data(), from_it.data(), nullptr};
    const int error =
        posix_spawn(&pid, "/proc/self/exe", nullptr, nullptr, arguments.data(), environ);
    return error == 0 ? absl::OkStatus() : absl::ErrnoToStatus(error, "cannot start a worker");
  }
};

absl::Status Coordinate(spanpool::Session& session, uint32_t count) {
  const absl::StatusOr<std::unique_ptr<Channel>> answers = Channel::Create(session, 2 * kWorkers);
  if (!answers.ok()) return answers.status();
  std::array<Worker, kWorkers> workers;
  std::vector<Buffer> jobs(count);  // those begun and not answered: this reference outlives workers
  std::vector<bool> answered(count);
  std::deque<uint32_t> waiting;
  for (uint32_t id = 0; id < count; ++id) waiting.push_back(id);

  uint32_t answers_left = count;
  int killed = 0;
  while (answers_left > 0) {
    for (Worker& worker : workers) {
      if (!worker.IsAlive()) {
        if (worker.job) {
          std::cout << "worker " << worker.pid << " died with job " << *worker.job << std::endl;
          waiting.push_front(*std::exchange(worker.job, std::nullopt));
        }
        if (absl::Status status = worker.Start(session, **answers); !status.ok()) return status;
      }
      // A worker that was killed may have answered first: then the job is done already.
      while (!waiting.empty() && answered[waiting.front()]) waiting.pop_front();
      if (worker.job || waiting.empty()) continue;
      const uint32_t id = waiting.front();
      if (jobs[id].size() == 0) {
        absl::StatusOr<Buffer> buffer = session.Allocate(sizeof(Job));
        if (!buffer.ok()) return buffer.status();
        auto* const job = reinterpret_cast<Job*>(buffer->data());
        job->id = id;
        for (uint32_t i = 0; i < kNumbers; ++i) job->numbers[i] = id + i;
        jobs[id] = *std::move(buffer);
      }
      if (absl::Status sent = worker.jobs->TrySend(jobs[id].Ref()); !sent.ok()) return sent;
      worker.job = id;
      waiting.pop_front();
    }

    // Not for ever: that a worker died is seen above, and nowhere else.
    const absl::StatusOr<Buffer> buffer = (*answers)->Receive(absl::Now() + absl::Milliseconds(50));
    if (absl::IsDeadlineExceeded(buffer.status())) continue;
    if (!buffer.ok()) return buffer.status();
    const Answer answer = *reinterpret_cast<const Answer*>(buffer->data());
    for (Worker& worker : workers) {
      if (worker.job == answer.id) worker.job.reset();
    }
    if (answered[answer.id]) continue;  // by a worker that was killed after it had answered
    if (answer.sum != uint64_t{kNumbers} * answer.id + uint64_t{kNumbers} * (kNumbers - 1) / 2) {
      return absl::DataLossError("a sum is wrong");
    }
    answered[answer.id] = true;
    jobs[answer.id] = Buffer();
    --answers_left;

    for (const Worker& worker : workers) {
      if (answers_left % 10 != 0 || !worker.job) continue;
      kill(worker.pid, SIGKILL);  // in the middle of a job, or just before or after it
      ++killed;
      break;
    }
  }
  for (Worker& worker : workers) {
    if (absl::Status closed = worker.jobs->Close(); !closed.ok()) return closed;
    waitpid(worker.pid, nullptr, 0);
  }
  std::cout << count << " jobs answered, " << killed << " workers killed" << std::endl;
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Channel>> Open(spanpool::Session& session, std::string_view text) {
  const absl::StatusOr<spanpool::Handle> handle = spanpool::Handle::Parse(text);
  if (!handle.ok()) return handle.status();
  return Channel::Open(session, *handle);
}

absl::Status Run(const std::vector<std::string>& arguments, uint32_t count) {
  const auto session = spanpool::Session::Attach({});
  if (!session.ok()) return session.status();
  if (arguments.size() == 1) return Coordinate(**session, count);
  prctl(PR_SET_PDEATHSIG, SIGKILL);  // no worker without a coordinator
  const absl::StatusOr<std::unique_ptr<Channel>> jobs = Open(**session, arguments[1]);
  if (!jobs.ok()) return jobs.status();
  const absl::StatusOr<std::unique_ptr<Channel>> answers = Open(**session, arguments[2]);
  if (!answers.ok()) return answers.status();
  return Work(**session, **jobs, **answers);
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  uint32_t count = 0;
  if (!(arguments.size() == 3 && arguments[0] == "work") &&
      !(arguments.size() == 1 && absl::SimpleAtoi(arguments[0], &count))) {
    std::cerr << "usage: workers JOBS\n";
    return 2;
  }
  const absl::Status status = Run(arguments, count);
  if (!status.ok()) std::cerr << "workers: " << status << "\n";
  return status.ok() ? 0 : 1;
}
