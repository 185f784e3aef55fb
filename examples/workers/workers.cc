// Worker processes that may be killed at any time, and a coordinator that loses no job by it.
//
//   workers JOBS    the coordinator: ends when every job is done
//   workers work    a worker; there may be any number, and they come and go as they like

#include <unistd.h>

#include <cstdint>
#include <iostream>
#include <iterator>
#include <map>
#include <memory>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "spanpool/spanpool.h"

namespace {

using spanpool::Buffer;
using spanpool::Channel;
using spanpool::Session;

// To add up numbers. What is asked is never written to: who is killed leaves it for the next one.
struct Job {
  uint32_t id;
  spanpool::Handle answers;  // the channel to send it back by
  uint32_t numbers[1 << 18];
  uint64_t sum;
};
Job& JobIn(Buffer& buffer) { return *reinterpret_cast<Job*>(buffer.data()); }
// Who sent it is another program: to be asked before the first look.
bool IsJob(const Buffer& buffer) { return buffer.size() == sizeof(Job); }

absl::Status Work(Session& session) {
  const auto jobs = Channel::Create(session, 1);
  if (!jobs.ok()) return jobs.status();
  // The name tells coordinators that we are there; and, as it goes with us, that we died.
  absl::Status status = session.Publish(absl::StrCat("worker/", getpid()), (*jobs)->block());
  while (status.ok()) {
    absl::StatusOr<Buffer> received = (*jobs)->Receive();
    if (absl::IsUnavailable(received.status())) continue;  // it is there in a moment
    if (!received.ok()) return received.status();
    if (!IsJob(*received)) continue;
    Job& job = JobIn(*received);
    job.sum = std::accumulate(std::begin(job.numbers), std::end(job.numbers), uint64_t{0});
    const auto answers = Channel::Open(session, job.answers);
    if (absl::IsNotFound(answers.status())) continue;  // whoever asked is gone
    status = answers.ok() ? (*answers)->Send(*std::move(received)) : answers.status();
  }
  return status;
}

absl::StatusOr<Buffer> NewJob(Session& session, uint32_t id, const Channel& answers) {
  absl::StatusOr<Buffer> buffer = session.Allocate(sizeof(Job));
  if (!buffer.ok()) return buffer;
  JobIn(*buffer).id = id;
  JobIn(*buffer).answers = answers.handle();
  std::iota(std::begin(JobIn(*buffer).numbers), std::end(JobIn(*buffer).numbers), id);
  return buffer;
}

struct Worker {
  std::unique_ptr<Channel> jobs;
  Buffer job;  // what it has to do, or empty: our reference outlives the worker's
};

absl::Status Coordinate(Session& session, uint32_t count) {
  const auto answers = Channel::Create(session, 64);
  if (!answers.ok()) return answers.status();
  const auto watch = session.WatchNames("worker/");
  if (!watch.ok()) return watch.status();
  std::map<std::string, Worker> workers;
  std::vector<Buffer> waiting;  // for a worker: new jobs, and those of workers that died
  std::vector<bool> done(count);
  uint32_t begun = 0;
  for (uint32_t left = count; left > 0;) {
    auto change = (*watch)->Next(absl::Now());  // who came, and who died?
    for (; change.ok(); change = (*watch)->Next(absl::Now())) {
      if (auto gone = workers.extract(change->name)) {
        std::cout << change->name << " is gone" << std::endl;
        if (gone.mapped().job.size() != 0) waiting.push_back(std::move(gone.mapped().job));
      }
      if (change->kind != spanpool::NameChange::Kind::kPublished) continue;
      auto jobs = Channel::Open(session, change->block.handle);
      if (!jobs.ok()) continue;  // gone already
      workers[change->name].jobs = *std::move(jobs);
      std::cout << change->name << " is here" << std::endl;
    }
    if (!absl::IsDeadlineExceeded(change.status())) return change.status();

    for (auto& [name, worker] : workers) {
      if (worker.job.size() != 0) continue;
      if (waiting.empty()) {
        if (begun == count) break;
        absl::StatusOr<Buffer> job = NewJob(session, begun++, **answers);
        if (!job.ok()) return job.status();
        waiting.push_back(*std::move(job));
      }
      worker.job = std::move(waiting.back());
      waiting.pop_back();
      if (worker.jobs->Send(worker.job.Ref()).ok()) continue;
      // After a death references are recounted, and for a moment nobody gets one.
      waiting.push_back(std::move(worker.job));
    }

    // Not for ever: that a worker died is seen above, and nowhere else.
    absl::StatusOr<Buffer> answer = (*answers)->Receive(absl::Now() + absl::Milliseconds(50));
    if (absl::IsDeadlineExceeded(answer.status()) || absl::IsUnavailable(answer.status())) continue;
    if (!answer.ok()) return answer.status();
    for (auto& [name, worker] : workers) {
      if (worker.job.data() == answer->data()) worker.job = Buffer();
    }
    // It may come twice: from one who died just after it had answered, and from who did it again.
    const uint32_t id = IsJob(*answer) ? JobIn(*answer).id : count;
    if (id >= count || done[id]) continue;
    done[id] = true;
    --left;
  }
  std::cout << count << " jobs done" << std::endl;
  return absl::OkStatus();
}

}  // namespace

int main(int argc, char** argv) {
  const std::string what = argc == 2 ? argv[1] : "";
  uint32_t count = 0;
  if (what != "work" && !absl::SimpleAtoi(what, &count)) {
    return std::cerr << "usage: workers JOBS | workers work\n", 2;
  }
  const auto session = Session::Attach({});
  const absl::Status status = !session.ok()    ? session.status()
                              : what == "work" ? Work(**session)
                                               : Coordinate(**session, count);
  if (!status.ok()) std::cerr << "workers: " << status << "\n";
  return status.ok() ? 0 : 1;
}
