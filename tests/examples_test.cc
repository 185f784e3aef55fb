// The examples, as a user runs them.

#include <gtest/gtest.h>
#include <signal.h>

#include <fstream>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "tests/support/daemon.h"
#include "tests/support/process.h"

namespace spanpool::testing {
namespace {

TEST(Examples, HelloSharesABlockWithItself) {
  Daemon daemon;
  Process hello({Runfile("examples/hello/hello")},
                {.uid = 0, .environment = {{"SPANPOOL_TARGET", daemon.run_dir()}}});
  const auto handle = hello.ReadLine();
  ASSERT_TRUE(handle.has_value()) << hello.standard_error();
  EXPECT_EQ(handle->size(), 32u);
  EXPECT_EQ(hello.ReadLine(), "hello");
  EXPECT_EQ(hello.Wait(), 0);
  EXPECT_TRUE(daemon.EventuallyEmpty());
}

TEST(Examples, HandoverPassesEveryByteFromOneProcessToAnother) {
  Daemon daemon;
  const Process::Options options = {.uid = 0,
                                    .environment = {{"SPANPOOL_TARGET", daemon.run_dir()}}};
  const std::string program = Runfile("examples/handover/handover");
  const std::string socket = daemon.run_dir() + "/handover.sock";
  Process sender({program, "send", socket, "40"}, options);
  Process receiver({program, "receive", socket}, options);
  EXPECT_EQ(receiver.Wait(), 0) << receiver.standard_error();
  EXPECT_EQ(sender.Wait(), 0) << sender.standard_error();
  EXPECT_TRUE(receiver.ReadLine().value_or("").starts_with("received 40 buffers"));
  EXPECT_TRUE(daemon.EventuallyEmpty());
}

TEST(Examples, DictionaryIsReadByItsNameWhenItsPublisherHasGone) {
  Daemon daemon;
  const Process::Options options = {.uid = 0,
                                    .environment = {{"SPANPOOL_TARGET", daemon.run_dir()}}};
  const std::string program = Runfile("examples/dictionary/dictionary");
  const std::string path = daemon.run_dir() + "/words";
  const auto publish = [&](const std::string& lines) {
    std::ofstream(path) << lines;
    Process publisher({program, "publish", "words", path}, options);
    EXPECT_EQ(publisher.Wait(), 0) << publisher.standard_error();
  };
  const auto look = [&](const std::string& word) {
    Process reader({program, "look", "words", word}, options);
    const std::string line = reader.ReadLine().value_or("");
    EXPECT_EQ(reader.Wait(), 0) << reader.standard_error();
    return line;
  };
  publish("span\ta run of pages\narena\t64 MiB of shared memory\n");
  EXPECT_EQ(look("arena"), "arena: 64 MiB of shared memory");
  EXPECT_EQ(look("span"), "span: a run of pages");
  EXPECT_EQ(look("heap"), "heap: ?");
  publish("heap\tall of it\n");
  EXPECT_EQ(look("heap"), "heap: all of it");
  EXPECT_EQ(look("span"), "span: ?");
  Process remove({Runfile("cli/spanpool"), "rm", "words"}, options);
  EXPECT_EQ(remove.Wait(), 0) << remove.standard_error();
  EXPECT_TRUE(daemon.EventuallyEmpty());
}

TEST(Examples, PipelineWritesEveryFrameInvertedAndInOrder) {
  Daemon daemon;
  const Process::Options options = {.uid = 0,
                                    .environment = {{"SPANPOOL_TARGET", daemon.run_dir()}}};
  const std::string program = Runfile("examples/pipeline/pipeline");
  const std::string path = daemon.run_dir() + "/frames.pgm";
  // The second camera goes on where the first, which is killed, was. The filter has to wait for the
  // writer, and the first camera for the filter.
  Process killed({program, "camera", "1000000"}, options);
  Process filter({program, "filter"}, options);
  Process writer({program, "writer", path}, options);
  EXPECT_TRUE(daemon.Eventually([](const auto& pool) { return pool.sessions() == 3; }));
  killed.Signal(SIGKILL);
  killed.Wait();
  Process camera({program, "camera", "20"}, options);
  EXPECT_EQ(camera.Wait(), 0) << camera.standard_error();
  EXPECT_EQ(filter.Wait(), 0) << filter.standard_error();
  EXPECT_EQ(writer.Wait(), 0) << writer.standard_error();
  EXPECT_TRUE(daemon.EventuallyEmpty());

  std::ostringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  const std::string images = text.str();
  const std::string header = "P5\n640 480\n255\n";
  constexpr size_t kWidth = 640;
  const size_t image_bytes = header.size() + kWidth * 480;
  ASSERT_EQ(images.size() % image_bytes, 0u);
  const size_t count = images.size() / image_bytes;
  ASSERT_GE(count, 20u);
  for (size_t image = 0; image < count; ++image) {
    const size_t begin = image * image_bytes;
    ASSERT_EQ(images.compare(begin, header.size(), header), 0) << image;
    // Each camera counts its frames from 0.
    const size_t number = image < count - 20 ? image : image - (count - 20);
    for (size_t i = 0; i < kWidth * 480; ++i) {
      ASSERT_EQ(static_cast<uint8_t>(images[begin + header.size() + i]),
                static_cast<uint8_t>(255 - static_cast<uint8_t>(i % kWidth + number)))
          << "image " << image << ", byte " << i;
    }
  }
}

TEST(Examples, WordCountPrintsTheMostFrequentWordsFirst) {
  Daemon daemon;
  const std::string path = daemon.run_dir() + "/text";
  std::ofstream(path) << "the cat saw the dog\nand the dog saw a bird\n";
  Process count({Runfile("examples/pmr/word_count"), path},
                {.uid = 0, .environment = {{"SPANPOOL_TARGET", daemon.run_dir()}}});
  for (const char* line : {"3 the", "2 dog", "2 saw", "1 a", "1 and", "1 bird", "1 cat"}) {
    EXPECT_EQ(count.ReadLine(), line);
  }
  EXPECT_NE(count.ReadLine().value_or("").find("KiB on loan"), std::string::npos);
  EXPECT_EQ(count.Wait(), 0) << count.standard_error();
  EXPECT_TRUE(daemon.EventuallyEmpty());
}

TEST(Examples, WordCountSaysThatThePoolIsFull) {
  Daemon daemon({.config = "", .flags = {"--limit", "67108864"}});
  const std::string path = daemon.run_dir() + "/text";
  {
    std::ofstream text(path);
    for (char c = 'a'; c <= 'z'; ++c) text << std::string(4 << 20, c) << "\n";
  }
  Process count({Runfile("examples/pmr/word_count"), path},
                {.uid = 0, .environment = {{"SPANPOOL_TARGET", daemon.run_dir()}}});
  EXPECT_EQ(count.Wait(), 1);
  EXPECT_NE(count.standard_error().find("the pool is full"), std::string::npos)
      << count.standard_error();
  EXPECT_TRUE(daemon.EventuallyEmpty());
}

TEST(Examples, WorkersThatAreKilledLoseNoJob) {
  Daemon daemon;
  const Process::Options options = {.uid = 0,
                                    .environment = {{"SPANPOOL_TARGET", daemon.run_dir()}}};
  const std::string program = Runfile("examples/workers/workers");
  Process coordinator({program, "5000"}, options);
  std::string line;
  const auto said = [&](const std::string& what) {
    while (line != what && line != "5000 jobs done") line = coordinator.ReadLine().value_or(what);
  };
  for (int round = 0; round < 6; ++round) {
    Process worker({program, "work"}, options);
    const std::string name = "worker/" + std::to_string(worker.pid());
    said(name + " is here");
    // Every other one dies before it has received what it was sent last.
    if (round % 2 != 0) worker.Signal(SIGSTOP);
    absl::SleepFor(absl::Milliseconds(5 * round));  // so that each dies somewhere else
    worker.Signal(SIGKILL);
    worker.Wait();
    said(name + " is gone");
  }
  std::vector<std::unique_ptr<Process>> workers;
  for (int i = 0; i < 3; ++i) {
    workers.push_back(
        std::make_unique<Process>(std::vector<std::string>{program, "work"}, options));
  }
  said("5000 jobs done");
  EXPECT_EQ(line, "5000 jobs done");
  EXPECT_EQ(coordinator.Wait(), 0) << coordinator.standard_error();
  for (const auto& worker : workers) EXPECT_EQ(worker->standard_error(), "");
  workers.clear();
  EXPECT_TRUE(daemon.EventuallyEmpty());
}

TEST(Examples, GrpcCallsCarryHandlesToAPeerInThePoolAndBytesToOthers) {
  Daemon daemon;
  for (const bool in_pool : {true, false}) {
    const std::string address = "unix:" + daemon.run_dir() + (in_pool ? "/near.sock" : "/far.sock");
    Process server({Runfile("examples/grpc/server"), address},
                   {.uid = 0,
                    .environment = {{"SPANPOOL_TARGET",
                                     in_pool ? daemon.run_dir() : daemon.run_dir() + "/no"}}});
    ASSERT_EQ(server.ReadLine(), "READY") << server.standard_error();
    Process client({Runfile("examples/grpc/client"), address, "3"},
                   {.uid = 0, .environment = {{"SPANPOOL_TARGET", daemon.run_dir()}}});
    const std::string how = in_pool ? ", by handle" : ", as bytes";
    EXPECT_EQ(client.ReadLine(), "image 0: mean 0" + how);
    EXPECT_EQ(client.ReadLine(), "image 1: mean 1" + how);
    EXPECT_EQ(client.ReadLine(), "image 2: mean 2" + how);
    EXPECT_EQ(client.Wait(), 0) << client.standard_error();
  }
  EXPECT_TRUE(daemon.EventuallyEmpty());
}

}  // namespace
}  // namespace spanpool::testing
