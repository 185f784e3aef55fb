// Drives the real binary: starts, serves, is lied to, and stops.

#include <fcntl.h>
#include <gmock/gmock.h>
#include <grp.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <optional>
#include <random>
#include <thread>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "grpcpp/create_channel.h"
#include "proto/layout/slot.h"
#include "server/grpc_listener.h"
#include "server/raw_client.h"
#include "spanpool/health.grpc.pb.h"

namespace spanpool {
namespace {

using layout::BlockWord;
using layout::Slot;
using layout::SlotState;
using testing::HasSubstr;

const char kBinary[] = "server/spanpoold";
constexpr uint32_t kClassOf64 = 6 * 2 + 1;  // size class 6, 64 bytes, noscan

// Asks again until `done`; the test's own time limit is the watchdog.
void WaitUntil(const std::function<bool()>& done) {
  while (!done()) absl::SleepFor(absl::Milliseconds(1));
}

// What the test's own program does as another process: `daemon_test act NAME RUN_DIR
// [ARGUMENT...]`. A new program rather than a mere fork: gRPC does not survive a fork.
using Arguments = std::vector<std::string>;

// Attaches, borrows `spans` spans, says so and waits to be killed.
int HoldSpans(const std::string& run_dir, const Arguments& arguments) {
  RawClient client(run_dir);
  if (client.Attach() != 0) return 1;
  RawClient::Call call = client.Open();
  v1::ExchangeResponse response;
  const auto spans = static_cast<uint32_t>(std::stoul(arguments.at(0)));
  if (!RawClient::Exchange(call, Want(kClassOf64, spans), &response)) return 1;
  std::puts("holding");
  std::fflush(stdout);
  for (;;) pause();
}

// Attaches, shares one block with 77 in it, prints its granule and waits to be killed.
int ShareBlock(const std::string& run_dir, const Arguments&) {
  RawClient client(run_dir);
  if (client.Attach() != 0) return 1;
  RawClient::Call call = client.Open();
  v1::ExchangeResponse response;
  if (!RawClient::Exchange(call, Want(kClassOf64, 1), &response)) return 1;
  std::byte* arena = client.MapArena(0);
  if (arena == nullptr) return 1;
  const uint64_t granule = response.grants(0).first_page() * kGranulesPerPage + 1;
  arena[granule * kGranuleBytes] = std::byte{77};
  client.slot(0) = Slot(SlotState::kHeld, GranuleId(granule)).bits();
  layout::WordOf(*client.table(0), GranuleId(granule)) = BlockWord().Shared().bits();
  std::printf("%lu\n", static_cast<unsigned long>(granule));
  std::fflush(stdout);
  for (;;) pause();
}

// Attaches to a pool for reading (1) or writing (2) and prints the code of the reply and its text.
int AttachOnce(const std::string& run_dir, const Arguments& arguments) {
  RawClient client(run_dir);
  const int code =
      client.Attach(arguments.at(0), static_cast<layout::AccessMode>(std::stoi(arguments.at(1))));
  std::printf("%d %s\n", code, client.reply().message);
  return 0;
}

// Attaches for reading and tries to get at the data for writing; prints how far it came.
int AttackAsReader(const std::string& run_dir, const Arguments&) {
  RawClient client(run_dir);
  if (client.Attach("default", layout::AccessMode::kRead) != 0) return 1;
  const bool mapped_writable = client.MapArena(0, /*writable=*/true) != nullptr;
  client.SendBytes(layout::BytesOf(layout::ArenaRequest()));
  const auto reply = client.Receive<layout::ArenaReply>();
  if (!reply.ok() || reply->second.size() != 2) return 1;
  const int data = reply->second[0].get();
  const bool reopened = open(absl::StrCat("/proc/self/fd/", data).c_str(), O_RDWR) >= 0;
  const bool changed_mode = fchmod(data, 0666) == 0;
  std::printf("%d%d%d\n", mapped_writable, reopened, changed_mode);
  return 0;
}

// Asks for health, for status and for a trim; prints the codes.
int AskServices(const std::string& run_dir, const Arguments&) {
  auto channel =
      grpc::CreateChannel("unix:" + run_dir + "/grpc.sock", grpc::InsecureChannelCredentials());
  grpc::ClientContext health_context, status_context;
  grpc::health::v1::HealthCheckResponse health;
  const grpc::Status health_status =
      grpc::health::v1::Health::NewStub(channel)->Check(&health_context, {}, &health);
  v1::GetStatusResponse response;
  const grpc::Status status =
      v1::Admin::NewStub(channel)->GetStatus(&status_context, {}, &response);
  grpc::Status trim_status;
  Trim(run_dir, v1::TrimRequest(), &trim_status);
  std::printf("%d %d %d\n", health_status.ok() ? static_cast<int>(health.status()) : -1,
              static_cast<int>(status.error_code()), static_cast<int>(trim_status.error_code()));
  return 0;
}

struct Act {
  const char* name;
  int (*run)(const std::string& run_dir, const Arguments& arguments);
};
constexpr Act kActs[] = {
    {"hold", HoldSpans},        {"share", ShareBlock}, {"attach", AttachOnce},
    {"attack", AttackAsReader}, {"ask", AskServices},
};

// A process that acts.
class Child {
 public:
  Child(const std::string& act, const std::string& run_dir, Arguments arguments = {},
        uid_t uid = 0) {
    arguments.insert(arguments.begin(), {"daemon_test", "act", act, run_dir});
    std::vector<char*> argv;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    // Another user may not be able to follow the path to this program; a descriptor will do.
    const int program = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    int out[2];
    EXPECT_EQ(pipe2(out, O_CLOEXEC), 0);
    pid_ = fork();
    if (pid_ == 0) {
      dup2(out[1], STDOUT_FILENO);
      if (uid != 0 && (setgroups(0, nullptr) != 0 || setgid(uid) != 0 || setuid(uid) != 0)) {
        _exit(99);
      }
      fexecve(program, argv.data(), environ);
      _exit(98);
    }
    close(program);
    close(out[1]);
    char byte;
    while (read(out[0], &byte, 1) == 1 && byte != '\n') line_ += byte;
    close(out[0]);
  }
  ~Child() {
    if (pid_ > 0) Kill();
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;

  // The one line that it printed; "" if it failed.
  const std::string& line() const { return line_; }
  pid_t pid() const { return pid_; }
  void Kill() {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
    pid_ = -1;
  }

 private:
  pid_t pid_ = -1;
  std::string line_;
};

class DaemonTest : public testing::Test {
 protected:
  explicit DaemonTest(std::vector<std::string> arguments = {"--limit=64MiB"})
      : daemon_(kBinary, std::move(arguments)) {
    EXPECT_TRUE(daemon_.ready()) << daemon_.Log();
  }
  const std::string& run_dir() const { return daemon_.run_dir(); }

  DaemonProcess daemon_;
};

TEST_F(DaemonTest, SigtermEndsItInOrderAndRemovesItsSockets) {
  EXPECT_TRUE(std::filesystem::exists(run_dir() + "/attach.sock"));
  EXPECT_TRUE(std::filesystem::exists(run_dir() + "/grpc.sock"));
  EXPECT_EQ(daemon_.Stop(SIGTERM), 0) << daemon_.Log();
  EXPECT_FALSE(std::filesystem::exists(run_dir() + "/attach.sock"));
  EXPECT_FALSE(std::filesystem::exists(run_dir() + "/grpc.sock"));
  EXPECT_THAT(daemon_.Log(), HasSubstr("SIGTERM: draining"));
}

TEST_F(DaemonTest, SigintEndsItInOrderToo) { EXPECT_EQ(daemon_.Stop(SIGINT), 0); }

TEST_F(DaemonTest, ASecondDaemonOnTheSameDirectoryIsRefused) {
  DaemonProcess second(kBinary, {}, run_dir());
  EXPECT_FALSE(second.ready());
  EXPECT_EQ(second.Wait(), 1);
  EXPECT_THAT(second.Log(), HasSubstr(absl::StrCat("pid ", daemon_.pid())));
  RawClient client(run_dir());
  EXPECT_EQ(client.Attach(), 0) << "the first one still serves";
}

TEST_F(DaemonTest, AfterAKillTheNextOneTakesTheDirectoryOver) {
  EXPECT_EQ(daemon_.Stop(SIGKILL), 128 + SIGKILL);
  DaemonProcess second(kBinary, {"--limit=64MiB"}, run_dir());
  ASSERT_TRUE(second.ready()) << second.Log();
  RawClient client(run_dir());
  EXPECT_EQ(client.Attach(), 0);
}

TEST_F(DaemonTest, ASpanIsLentMappedWrittenAndReturned) {
  RawClient client(run_dir());
  ASSERT_EQ(client.Attach(), 0) << client.reply().message;
  EXPECT_EQ(client.reply().limit_bytes, 64u << 20);
  RawClient::Call call = client.Open();
  v1::ExchangeRequest request = Want(kClassOf64, 2);
  request.set_request_id(17);
  v1::ExchangeResponse response;
  ASSERT_TRUE(RawClient::Exchange(call, request, &response));
  EXPECT_EQ(response.request_id(), 17u);
  ASSERT_EQ(response.grants_size(), 2);
  EXPECT_NE(response.grants(0).sequence(), response.grants(1).sequence());
  EXPECT_EQ(response.shortfalls_size(), 0);
  std::byte* arena = client.MapArena(0);
  ASSERT_NE(arena, nullptr);
  arena[response.grants(0).first_page() * kPageBytes] = std::byte{42};

  v1::PoolStatus status = StatusOf(run_dir());
  EXPECT_EQ(status.on_loan_bytes(), 2 * kPageBytes);
  EXPECT_EQ(status.sessions(), 1u);
  EXPECT_EQ(status.exchange_messages_total(), 1u);
  EXPECT_EQ(status.grants_total(), 2u);

  EXPECT_NE(client.Detach(), 0) << "spans are on loan";
  v1::ExchangeRequest back;
  for (const v1::SpanGrant& grant : response.grants()) {
    back.add_returns()->set_grant_sequence(grant.sequence());
  }
  ASSERT_TRUE(RawClient::Exchange(call, back, &response));
  EXPECT_EQ(StatusOf(run_dir()).on_loan_bytes(), 0u);
  EXPECT_EQ(client.Detach(), 0);
  EXPECT_TRUE(client.AtEndOfFile());
  EXPECT_EQ(call.stream->Finish().error_code(), grpc::StatusCode::UNAUTHENTICATED);
  status = StatusOf(run_dir());
  EXPECT_EQ(status.sessions(), 0u);
  EXPECT_EQ(status.on_loan_bytes() + status.in_lists_bytes() + status.free_bytes() +
                status.scavenged_bytes(),
            status.reserved_bytes());
}

TEST_F(DaemonTest, AKilledClientsMemoryComesBackAndAStoppedOnesDoesNot) {
  Child child("hold", run_dir(), {"8"});
  ASSERT_EQ(child.line(), "holding") << daemon_.Log();
  ASSERT_EQ(kill(child.pid(), SIGSTOP), 0);
  // Something else happens in the daemon meanwhile.
  for (int i = 0; i < 20; ++i) {
    RawClient other(run_dir());
    ASSERT_EQ(other.Attach(), 0);
    ASSERT_EQ(other.Detach(), 0);
  }
  EXPECT_EQ(StatusOf(run_dir()).on_loan_bytes(), 8 * kPageBytes);
  child.Kill();
  WaitUntil([this] { return StatusOf(run_dir()).on_loan_bytes() == 0; });
  WaitUntil([this] { return StatusOf(run_dir()).sessions_reaped_total() == 1; });
  EXPECT_EQ(StatusOf(run_dir()).sessions(), 0u);
}

TEST_F(DaemonTest, TheEndOfTheLifelineOnlyDetaches) {
  auto client = std::make_unique<RawClient>(run_dir());
  ASSERT_EQ(client->Attach(), 0);
  RawClient::Call call = client->Open();
  v1::ExchangeResponse response;
  ASSERT_TRUE(RawClient::Exchange(call, Want(kClassOf64, 4), &response));
  const std::string token(reinterpret_cast<const char*>(client->reply().token),
                          layout::kTokenBytes);
  client.reset();  // this process, which lent the spans, lives
  EXPECT_FALSE(call.stream->Read(&response));
  EXPECT_EQ(call.stream->Finish().error_code(), grpc::StatusCode::UNAUTHENTICATED);
  WaitUntil([this] { return StatusOf(run_dir()).quarantined_bytes() == 4 * kPageBytes; });
  EXPECT_EQ(StatusOf(run_dir()).on_loan_bytes(), 4 * kPageBytes);

  RawClient again(run_dir());
  RawClient::Call late = again.Open(token);
  EXPECT_FALSE(late.stream->Read(&response));
  EXPECT_EQ(late.stream->Finish().error_code(), grpc::StatusCode::UNAUTHENTICATED);
}

TEST_F(DaemonTest, AKilledSharersBlockLivesUntilItsReaderLetsGo) {
  Child sharer("share", run_dir());
  ASSERT_NE(sharer.line(), "") << daemon_.Log();
  const uint64_t granule = std::stoul(sharer.line());
  RawClient reader(run_dir());
  ASSERT_EQ(reader.Attach(), 0);
  std::byte* arena = reader.MapArena(0);
  ASSERT_NE(arena, nullptr);
  layout::SharedWord& word = layout::WordOf(*reader.table(0), GranuleId(granule));
  reader.slot(0) = Slot(SlotState::kHeld, GranuleId(granule)).bits();
  word = BlockWord(word).Acquired().bits();

  sharer.Kill();
  WaitUntil([this] { return StatusOf(run_dir()).sessions_reaped_total() == 1; });
  v1::PoolStatus status = StatusOf(run_dir());
  EXPECT_EQ(status.on_loan_bytes(), 0u);
  EXPECT_EQ(status.in_lists_bytes(), kPageBytes);
  EXPECT_EQ(BlockWord(word).refs(), 1u);
  EXPECT_EQ(arena[granule * kGranuleBytes], std::byte{77});

  word = BlockWord(word).Released().bits();
  reader.slot(0) = 0;
  // Nobody asks for memory: the daemon's own sweep finds it.
  WaitUntil([this] { return StatusOf(run_dir()).in_lists_bytes() == 0; });
  EXPECT_EQ(StatusOf(run_dir()).live_listed_blocks(), 0u);
  EXPECT_EQ(reader.Detach(), 0);
}

// Access.

class AccessTest : public testing::Test {
 protected:
  void SetUp() override {
    const std::string config = testing::TempDir() + "/access.textproto";
    std::ofstream(config) << R"(
      pool { name: "default" limit_bytes: 67108864
             allow { uid: 4001 access: READ }
             allow { gid: 4002 access: WRITE }
             allow { uid: 4003 access: ADMIN } })";
    daemon_.emplace(kBinary, std::vector<std::string>{"--config=" + config});
    ASSERT_TRUE(daemon_->ready()) << daemon_->Log();
    // In a user namespace of one user, as in a sandbox, there are no others to become.
    if (As(4000, "ask").empty()) GTEST_SKIP() << "cannot become another user here";
  }
  const std::string& run_dir() const { return daemon_->run_dir(); }
  std::string As(uid_t uid, const std::string& act, const Arguments& arguments = {}) {
    return Child(act, run_dir(), arguments, uid).line();
  }
  int AttachAs(uid_t uid, const char* mode, const std::string& pool = "default") {
    const std::string line = As(uid, "attach", {pool, mode});
    return line.empty() ? -1 : std::stoi(line);
  }

  std::optional<DaemonProcess> daemon_;
};

TEST_F(AccessTest, EachUidGetsWhatTheListSaysAndNoMore) {
  constexpr int kDenied = static_cast<int>(absl::StatusCode::kPermissionDenied);
  constexpr char kRead[] = "1", kWrite[] = "2";
  EXPECT_EQ(AttachAs(4000, kRead), kDenied);
  EXPECT_EQ(AttachAs(4000, kWrite), kDenied);
  EXPECT_EQ(AttachAs(4001, kRead), 0);
  EXPECT_EQ(AttachAs(4001, kWrite), kDenied);
  EXPECT_EQ(AttachAs(4002, kWrite), 0);
  EXPECT_EQ(AttachAs(4003, kWrite), 0);
  EXPECT_EQ(AttachAs(4003, kWrite, "nope"), static_cast<int>(absl::StatusCode::kNotFound));
}

TEST_F(AccessTest, ARefusalSaysWhoWhatAndHowToAllowIt) {
  const std::string line = As(4001, "attach", {"default", "2"});
  EXPECT_THAT(line, HasSubstr("uid 4001 has READ access to pool default and asks for WRITE"));
  EXPECT_THAT(line, HasSubstr("allow { uid: 4001 access: WRITE }"));
}

TEST_F(AccessTest, AReaderCannotMakeItsDescriptorOfTheDataWritable) {
  Child holder("hold", run_dir(), {"1"});
  ASSERT_EQ(holder.line(), "holding");
  EXPECT_EQ(As(4001, "attack"), "000");
}

TEST_F(AccessTest, AnybodyMayAskForHealthButOnlyAdministratorsForStatusAndTrim) {
  const std::string kAnswered = "1 0 0";
  const int denied = grpc::StatusCode::PERMISSION_DENIED;
  const std::string kDenied = absl::StrCat("1 ", denied, " ", denied);
  EXPECT_EQ(As(0, "ask"), kAnswered);
  EXPECT_EQ(As(4003, "ask"), kAnswered);
  EXPECT_EQ(As(4002, "ask"), kDenied);
  EXPECT_EQ(As(4000, "ask"), kDenied);
}

TEST_F(AccessTest, WhoIsAnAdministratorDoesNotHangOnWhoConnectedBefore) {
  std::vector<layout::UniqueFd> connected;
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strcpy(address.sun_path, (run_dir() + "/grpc.sock").c_str());
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(As(0, "ask"), "1 0 0") << i;
    EXPECT_EQ(As(4000, "ask")[0], '1') << i;
    EXPECT_NE(As(4000, "ask"), "1 0 0") << i;
    // Takes descriptors of the daemon, so that the next connection gets other numbers.
    connected.emplace_back(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    ASSERT_EQ(
        connect(connected.back().get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  }
}

TEST(GrpcListener, OnlyCallsByAnOddDescriptorAreAnAdministrators) {
  EXPECT_TRUE(GrpcListener::IsAdministrator("fd:17"));
  for (const char* peer : {"fd:18", "fd:0", "fd:-1", "fd:", "fd:x7", "fd:17x", "17", "",
                           "fd:99999999999999999999", "unix:17", "ipv4:127.0.0.1:17"}) {
    EXPECT_FALSE(GrpcListener::IsAdministrator(peer)) << peer;
  }
}

// Hostile clients.

TEST_F(DaemonTest, AnyBytesOnTheAttachSocketAreHarmless) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  int refused = 0;
  for (int i = 0; i < 1500; ++i) {
    RawClient client(run_dir());
    if (random() % 4 == 0) {
      ASSERT_EQ(client.Attach(), 0);
    }
    // A valid message, changed in size or in some bytes; or noise.
    std::vector<std::byte> bytes;
    switch (random() % 4) {
      case 0: {
        layout::AttachRequest request;
        std::strcpy(request.pool, "default");
        const auto whole = layout::BytesOf(request);
        bytes.assign(whole.begin(), whole.end());
        break;
      }
      case 1: {
        const layout::ArenaRequest request;
        const auto whole = layout::BytesOf(request);
        bytes.assign(whole.begin(), whole.end());
        break;
      }
      case 2: {
        const layout::DetachRequest request;
        const auto whole = layout::BytesOf(request);
        bytes.assign(whole.begin(), whole.end());
        break;
      }
      default:
        bytes.resize(random() % 2000);
        for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
    }
    if (random() % 2) bytes.resize(random() % (bytes.size() + 10));
    for (uint64_t n = random() % 4; n > 0 && !bytes.empty(); --n) {
      bytes[random() % bytes.size()] = static_cast<std::byte>(random());
    }
    if (bytes.empty()) continue;
    ASSERT_TRUE(client.SendBytes(bytes));
    // Every message gets an answer, or the end of the connection.
    std::array<std::byte, layout::kMaxAttachMessageBytes> answer;
    auto packet = layout::ReceivePacket(client.socket(), answer);
    if (packet.ok() && packet->bytes >= sizeof(layout::AttachHeader) + sizeof(int32_t)) {
      int32_t code;
      std::memcpy(&code, answer.data() + sizeof(layout::AttachHeader), sizeof(code));
      refused += code != 0;
    }
  }
  EXPECT_GT(refused, 0);
  RawClient client(run_dir());
  EXPECT_EQ(client.Attach(), 0) << "it still serves";
}

TEST_F(DaemonTest, EachMalformedMessageGetsTheRefusalThatNamesItsFault) {
  const auto refusal = [&](const auto& message, size_t bytes) {
    RawClient client(run_dir());
    client.SendBytes(layout::BytesOf(message).first(bytes));
    const auto reply = client.Receive<layout::AttachReply>();
    EXPECT_TRUE(client.AtEndOfFile());
    return reply.ok() ? absl::StrCat(reply->first.code, " ", reply->first.message) : "end";
  };
  layout::AttachRequest request;
  std::strcpy(request.pool, "default");
  EXPECT_THAT(refusal(request, 15), HasSubstr("shorter than its header"));
  EXPECT_THAT(refusal(request, 87), HasSubstr("87 bytes are not the size of a message of type 1"));
  layout::AttachRequest wrong = request;
  wrong.header.magic = 1;
  EXPECT_THAT(refusal(wrong, sizeof(wrong)), HasSubstr("not spanpool's attach protocol"));
  wrong = request;
  wrong.header.version = 999;
  EXPECT_THAT(refusal(wrong, sizeof(wrong)), HasSubstr("speaks version 999"));
  EXPECT_THAT(refusal(wrong, 20), HasSubstr("speaks version 999"))
      << "another version may have other sizes";
  wrong = request;
  wrong.header.type = layout::AttachType::kDetachReply;
  EXPECT_THAT(refusal(wrong, sizeof(wrong)), HasSubstr("no request has type 6"));
  wrong = request;
  std::memset(wrong.pool, 'x', sizeof(wrong.pool));
  EXPECT_THAT(refusal(wrong, sizeof(wrong)), HasSubstr("name has no end"));
  wrong = request;
  wrong.access = static_cast<layout::AccessMode>(3);
  EXPECT_THAT(refusal(wrong, sizeof(wrong)), HasSubstr("access 3; expected 1 or 2"));
  wrong = request;
  std::strcpy(wrong.pool, "no\npe");
  EXPECT_THAT(refusal(wrong, sizeof(wrong)), HasSubstr("there is no pool \"no\\npe\""));
  EXPECT_THAT(refusal(wrong, sizeof(wrong)), HasSubstr("may use: default"));
  EXPECT_THAT(refusal(layout::ArenaRequest(), sizeof(layout::ArenaRequest)),
              testing::StartsWith("9 "))
      << "FAILED_PRECONDITION: attach first";
}

// --- Recall --------------------------------------------------------------------------------------

TEST_F(DaemonTest, ATrimAsksEachSessionAndCountsWhatComesBackBeforeItsAnswer) {
  RawClient client(run_dir());
  RawClient idle(run_dir());  // holds nothing, and so is not asked
  ASSERT_EQ(client.Attach(), 0);
  ASSERT_EQ(idle.Attach(), 0);
  RawClient::Call call = client.Open();
  v1::ExchangeResponse response;
  ASSERT_TRUE(RawClient::Exchange(call, Want(kClassOf64, 4), &response));
  uint64_t last = 0;
  for (int round = 0; round < 3; ++round) {
    v1::TrimResponse trimmed;
    std::thread trim([&] {
      v1::TrimRequest request;
      request.set_wait_ms(60'000);
      trimmed = Trim(run_dir(), request);
    });
    const auto notice = client.Receive<layout::RecallNotice>();
    ASSERT_TRUE(notice.ok());
    EXPECT_EQ(notice->first.header.type, layout::AttachType::kRecallNotice);
    EXPECT_GT(notice->first.recall, last);
    EXPECT_EQ(notice->first.bytes, UINT64_MAX);
    last = notice->first.recall;
    v1::ExchangeRequest back;
    back.add_returns()->set_grant_sequence(response.grants(round).sequence());
    v1::ExchangeResponse ignored;
    ASSERT_TRUE(RawClient::Exchange(call, back, &ignored));
    layout::RecallAnswer answer;
    answer.recall = last;
    ASSERT_TRUE(client.SendBytes(layout::BytesOf(answer)));
    trim.join();
    ASSERT_EQ(trimmed.pools_size(), 1);
    EXPECT_EQ(trimmed.pools(0).name(), "default");
    EXPECT_EQ(trimmed.pools(0).sessions_asked(), 1u);
    EXPECT_EQ(trimmed.pools(0).sessions_answered(), 1u);
    EXPECT_EQ(trimmed.pools(0).recalled_bytes(), kPageBytes);
    EXPECT_EQ(trimmed.pools(0).silent_size(), 0);
    EXPECT_GT(trimmed.pools(0).slowest_answer_ms(), 0);
  }
}

TEST_F(DaemonTest, HoweverManyTrimAtOnceOneNoticeIsUnderWayAndAllAreAnswered) {
  RawClient client(run_dir());
  ASSERT_EQ(client.Attach(), 0);
  RawClient::Call call = client.Open();
  v1::ExchangeResponse response;
  ASSERT_TRUE(RawClient::Exchange(call, Want(kClassOf64, 1), &response));
  std::atomic<int> answered{0};
  std::vector<std::thread> trims;
  for (int i = 0; i < 8; ++i) {
    trims.emplace_back([&] {
      v1::TrimRequest request;
      request.set_wait_ms(60'000);
      if (Trim(run_dir(), request).pools(0).sessions_answered() == 1) ++answered;
    });
  }
  std::thread answers([&] {
    uint64_t last = 0;
    for (;;) {
      const auto notice = client.Receive<layout::RecallNotice>();
      if (!notice.ok() || notice->first.header.type != layout::AttachType::kRecallNotice) return;
      EXPECT_GT(notice->first.recall, last);
      last = notice->first.recall;
      // Nothing comes after it until it is answered.
      std::byte bytes[sizeof(layout::RecallNotice)];
      EXPECT_FALSE(layout::ReceivePacket(client.socket(), bytes, layout::Wait::kNo).ok());
      layout::RecallAnswer answer;
      answer.recall = last;
      client.SendBytes(layout::BytesOf(answer));
    }
  });
  for (std::thread& trim : trims) trim.join();
  EXPECT_EQ(answered, 8);
  client.SendBytes(layout::BytesOf(layout::DetachRequest()));  // its reply ends the thread
  answers.join();
}

TEST_F(DaemonTest, ASessionThatDoesNotAnswerIsNamedAndHoldsTheTrimUpNoLongerThanItMay) {
  Child child("hold", run_dir(), {"8"});
  ASSERT_EQ(child.line(), "holding") << daemon_.Log();
  v1::TrimRequest request;
  request.set_wait_ms(20);
  for (int round = 0; round < 3; ++round) {
    const v1::TrimResponse trimmed = Trim(run_dir(), request);
    ASSERT_EQ(trimmed.pools_size(), 1);
    EXPECT_EQ(trimmed.pools(0).sessions_asked(), 1u);
    EXPECT_EQ(trimmed.pools(0).sessions_answered(), 0u);
    EXPECT_EQ(trimmed.pools(0).recalled_bytes(), 0u);
    ASSERT_EQ(trimmed.pools(0).silent_size(), 1);
    EXPECT_EQ(trimmed.pools(0).silent(0).pid(), child.pid());
    EXPECT_EQ(trimmed.pools(0).silent(0).on_loan_bytes(), 8 * kPageBytes);
  }
  EXPECT_EQ(StatusOf(run_dir()).on_loan_bytes(), 8 * kPageBytes);
}

TEST_F(DaemonTest, ATrimDoesNotWaitForASessionWhoseProcessDies) {
  auto child = std::make_unique<Child>("hold", run_dir(), Arguments{"8"});
  ASSERT_EQ(child->line(), "holding") << daemon_.Log();
  v1::TrimResponse trimmed;
  std::thread trim([&] {
    v1::TrimRequest request;
    request.set_wait_ms(60'000);
    trimmed = Trim(run_dir(), request);
  });
  child->Kill();
  trim.join();
  ASSERT_EQ(trimmed.pools_size(), 1);
  EXPECT_EQ(trimmed.pools(0).sessions_answered(), 0u);
  EXPECT_EQ(trimmed.pools(0).silent_size(), 0);
}

TEST_F(DaemonTest, AnAnswerThatNobodyAskedForEndsTheConnection) {
  for (const uint64_t number : {uint64_t{0}, uint64_t{1}, UINT64_MAX}) {
    for (const bool attached : {false, true}) {
      RawClient client(run_dir());
      if (attached) {
        ASSERT_EQ(client.Attach(), 0);
      }
      layout::RecallAnswer answer;
      answer.recall = number;
      ASSERT_TRUE(client.SendBytes(layout::BytesOf(answer)));
      const auto refusal = client.Receive<layout::AttachReply>();
      ASSERT_TRUE(refusal.ok());
      EXPECT_THAT(refusal->first.message, HasSubstr("which is not under way"));
      EXPECT_TRUE(client.AtEndOfFile());
    }
  }
}

TEST_F(DaemonTest, ATrimOfWhatIsNotThereOrThatWouldWaitTooLongIsRefused) {
  grpc::Status status;
  v1::TrimRequest request;
  request.set_pool("nope");
  Trim(run_dir(), request, &status);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::NOT_FOUND);
  request.clear_pool();
  request.set_wait_ms(60'001);
  Trim(run_dir(), request, &status);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(DaemonTest, AShortageHasTheOtherSessionsAsked) {
  RawClient holder(run_dir());
  RawClient asker(run_dir());
  ASSERT_EQ(holder.Attach(), 0);
  ASSERT_EQ(asker.Attach(), 0);
  RawClient::Call holds = holder.Open();
  RawClient::Call asks = asker.Open();
  v1::ExchangeResponse response;
  ASSERT_TRUE(RawClient::Exchange(holds, Want(1, 1, 8000), &response));
  const uint64_t held = response.grants(0).sequence();
  ASSERT_TRUE(RawClient::Exchange(asks, Want(1, 1, 1000), &response));
  EXPECT_EQ(response.shortfalls(0).code(), 8);
  const auto notice = holder.Receive<layout::RecallNotice>();
  ASSERT_TRUE(notice.ok());
  EXPECT_EQ(notice->first.bytes, 1000 * kPageBytes);
  v1::ExchangeRequest back;
  back.add_returns()->set_grant_sequence(held);
  ASSERT_TRUE(RawClient::Exchange(holds, back, &response));
  ASSERT_TRUE(RawClient::Exchange(asks, Want(1, 1, 1000), &response));
  EXPECT_EQ(response.grants_size(), 1);
}

TEST_F(DaemonTest, AnArenaThatDoesNotExistIsRefusedAndTheSessionLives) {
  RawClient client(run_dir());
  ASSERT_EQ(client.Attach(), 0);
  for (const uint32_t arena : {1000u, UINT32_MAX}) {
    layout::ArenaRequest request;
    request.arena = arena;
    ASSERT_TRUE(client.SendBytes(layout::BytesOf(request)));
    const auto reply = client.Receive<layout::ArenaReply>();
    ASSERT_TRUE(reply.ok());
    EXPECT_EQ(reply->first.code, static_cast<int>(absl::StatusCode::kNotFound));
  }
  EXPECT_EQ(client.Detach(), 0);
}

TEST_F(DaemonTest, DescriptorsSentToTheDaemonAreRefused) {
  RawClient client(run_dir());
  const int fds[] = {0, 1, 2};
  layout::AttachRequest request;
  ASSERT_TRUE(layout::SendPacket(client.socket(), layout::BytesOf(request), fds).ok());
  const auto reply = client.Receive<layout::AttachReply>();
  ASSERT_TRUE(reply.ok());
  EXPECT_EQ(reply->first.code, static_cast<int>(absl::StatusCode::kInvalidArgument));
  EXPECT_TRUE(client.AtEndOfFile());
}

TEST_F(DaemonTest, ConnectionsThatNeverAttachCannotKeepOthersOut) {
  std::vector<std::unique_ptr<RawClient>> idle;
  for (int i = 0; i < 300; ++i) idle.push_back(std::make_unique<RawClient>(run_dir()));
  RawClient client(run_dir());
  EXPECT_EQ(client.Attach(), 0);
  EXPECT_TRUE(idle[0]->AtEndOfFile()) << "the oldest were closed";
}

TEST_F(DaemonTest, AClientThatDoesNotReadItsRepliesIsEvicted) {
  RawClient client(run_dir());
  ASSERT_EQ(client.Attach(), 0);
  RawClient::Call call = client.Open();
  v1::ExchangeResponse response;
  ASSERT_TRUE(RawClient::Exchange(call, Want(kClassOf64, 1), &response));
  const layout::ArenaRequest request;
  int sent = 0;
  while (client.SendBytes(layout::BytesOf(request))) ++sent;
  int replies = 0;
  for (auto reply = client.Receive<layout::ArenaReply>(); reply.ok();
       reply = client.Receive<layout::ArenaReply>()) {
    ++replies;
  }
  EXPECT_LE(replies, 2) << "so many descriptors were under way";
  EXPECT_GT(sent, replies);
  RawClient other(run_dir());
  EXPECT_EQ(other.Attach(), 0);
  WaitUntil([this] { return StatusOf(run_dir()).evictions_total() == 1; });
  EXPECT_THAT(daemon_.Log(), HasSubstr("evicted: a client reads the reply"));
}

TEST_F(DaemonTest, ABatchThatBreaksTheRulesEvictsItsSession) {
  RawClient client(run_dir());
  ASSERT_EQ(client.Attach(), 0);
  RawClient::Call call = client.Open();
  v1::ExchangeResponse response;
  ASSERT_TRUE(RawClient::Exchange(call, Want(kClassOf64, 1), &response));
  EXPECT_FALSE(RawClient::Exchange(call, Want(136, 1), &response));
  const grpc::Status status = call.stream->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("span class 136; expected 0 to 135"));
  EXPECT_TRUE(client.AtEndOfFile());
  const v1::PoolStatus pool = StatusOf(run_dir());
  EXPECT_EQ(pool.evictions_total(), 1u);
  EXPECT_EQ(pool.quarantined_bytes(), kPageBytes);
}

TEST_F(DaemonTest, ASecondStreamEndsTheFirst) {
  RawClient client(run_dir());
  ASSERT_EQ(client.Attach(), 0);
  RawClient::Call first = client.Open();
  v1::ExchangeResponse response;
  ASSERT_TRUE(RawClient::Exchange(first, Want(kClassOf64, 1), &response));
  RawClient::Call second = client.Open();
  ASSERT_TRUE(RawClient::Exchange(second, Want(kClassOf64, 1), &response));
  EXPECT_FALSE(first.stream->Read(&response));
  EXPECT_EQ(first.stream->Finish().error_code(), grpc::StatusCode::ABORTED);
  ASSERT_TRUE(RawClient::Exchange(second, Want(kClassOf64, 1), &response));
}

v1::ExchangeRequest InventoryOf(const std::vector<uint64_t>& deltas, bool more = false) {
  v1::ExchangeRequest request;
  request.mutable_inventory()->mutable_sequence_deltas()->Add(deltas.begin(), deltas.end());
  request.mutable_inventory()->set_more(more);
  return request;
}

TEST_F(DaemonTest, AnInventoryAtAStreamsBeginningBringsTheBooksInLine) {
  RawClient client(run_dir());
  ASSERT_EQ(client.Attach(), 0);
  RawClient::Call first = client.Open();
  v1::ExchangeResponse response;
  ASSERT_TRUE(RawClient::Exchange(first, Want(kClassOf64, 5), &response));
  const uint64_t one = response.grants(0).sequence();
  ASSERT_EQ(response.grants(4).sequence(), one + 4);
  // As if all but the second and the last had been lost. Wants may ride along.
  RawClient::Call second = client.Open();
  v1::ExchangeRequest request = InventoryOf({one + 1, 3});
  *request.add_wants() = Want(kClassOf64, 1).wants(0);
  ASSERT_TRUE(RawClient::Exchange(second, request, &response));
  EXPECT_EQ(response.unknown_size(), 0);
  EXPECT_EQ(response.grants_size(), 1);
  EXPECT_EQ(StatusOf(run_dir()).on_loan_bytes(), 3 * kPageBytes);
  EXPECT_THAT(daemon_.Log(), HasSubstr("3 spans that it never learned of"));
  // In parts, with numbers that are no longer on record.
  RawClient::Call third = client.Open();
  ASSERT_TRUE(RawClient::Exchange(third, InventoryOf({one, 1}, true), &response));
  ASSERT_EQ(response.unknown_size(), 1);
  EXPECT_EQ(response.unknown(0), one);
  ASSERT_TRUE(RawClient::Exchange(third, InventoryOf({1}), &response));
  ASSERT_EQ(response.unknown_size(), 1);
  EXPECT_EQ(response.unknown(0), one + 2);
  EXPECT_EQ(StatusOf(run_dir()).on_loan_bytes(), kPageBytes);
}

TEST_F(DaemonTest, AnInventoryThatBreaksTheRulesEvictsItsSession) {
  using Requests = std::vector<v1::ExchangeRequest>;
  v1::ExchangeRequest early = InventoryOf({1}, true);
  *early.add_wants() = Want(kClassOf64, 1).wants(0);
  const std::vector<std::pair<Requests, std::string>> cases = {
      {{Want(kClassOf64, 1), InventoryOf({1})}, "at a stream's beginning"},
      {{InventoryOf({}), InventoryOf({})}, "at a stream's beginning"},
      {{InventoryOf({1}, true), Want(kClassOf64, 1)}, "another part of the inventory was due"},
      {{early}, "before the end of the inventory"},
      {{InventoryOf({1, 0})}, "does not ascend"},
      {{InventoryOf({}, true)}, "empty part"},
      {{InventoryOf({1'000'000})}, "has not given out"},
      {{InventoryOf({1}, true), InventoryOf({1'000'000})}, "has not given out"},
      {{InventoryOf(std::vector<uint64_t>(300'000, 1))}, "at most 16384"},
  };
  for (const auto& [requests, words] : cases) {
    RawClient client(run_dir());
    ASSERT_EQ(client.Attach(), 0);
    {
      // So that there are numbers to name.
      RawClient::Call call = client.Open();
      v1::ExchangeResponse response;
      ASSERT_TRUE(RawClient::Exchange(call, Want(kClassOf64, 4), &response));
    }
    RawClient::Call call = client.Open();
    v1::ExchangeResponse response;
    for (size_t i = 0; i + 1 < requests.size(); ++i) {
      ASSERT_TRUE(RawClient::Exchange(call, requests[i], &response)) << words;
    }
    EXPECT_FALSE(RawClient::Exchange(call, requests.back(), &response)) << words;
    const grpc::Status status = call.stream->Finish();
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << words;
    EXPECT_THAT(status.error_message(), HasSubstr(words));
    EXPECT_TRUE(client.AtEndOfFile());
  }
  EXPECT_EQ(StatusOf(run_dir()).evictions_total(), cases.size());
}

TEST_F(DaemonTest, ACallWithoutAValidTokenIsUnauthenticated) {
  RawClient client(run_dir());
  ASSERT_EQ(client.Attach(), 0);
  for (const std::string& token :
       {std::string(), std::string(16, 'x'), std::string("short"), std::string(1000, 'y')}) {
    RawClient::Call call = client.Open(token);
    v1::ExchangeResponse response;
    EXPECT_FALSE(call.stream->Read(&response));
    const grpc::Status status = call.stream->Finish();
    EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAUTHENTICATED);
    EXPECT_THAT(status.error_message(), HasSubstr("attach"));
  }
}

TEST_F(DaemonTest, AStreamThatIsNeverReadHoldsUpNobody) {
  RawClient silent(run_dir());
  ASSERT_EQ(silent.Attach(), 0);
  RawClient::Call flood = silent.Open();
  // Writes are taken until the answers fill what the transport may hold; then they stand still.
  std::thread writer([&] {
    v1::ExchangeRequest request;
    for (int i = 0; i < 256; ++i) *request.add_wants() = Want(kClassOf64, 1024).wants(0);
    while (flood.stream->Write(request)) {
    }
  });
  RawClient other(run_dir());
  ASSERT_EQ(other.Attach(), 0);
  RawClient::Call call = other.Open();
  for (int i = 0; i < 100; ++i) {
    v1::ExchangeResponse response;
    ASSERT_TRUE(RawClient::Exchange(call, v1::ExchangeRequest(), &response));
  }
  flood.context->TryCancel();
  writer.join();
}

TEST_F(DaemonTest, NoiseOnTheGrpcSocketIsHarmless) {
  std::mt19937_64 random(1);
  for (int i = 0; i < 200; ++i) {
    layout::UniqueFd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strcpy(address.sun_path, (run_dir() + "/grpc.sock").c_str());
    ASSERT_EQ(connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    std::string noise(random() % 500, 'x');
    for (char& c : noise) c = static_cast<char>(random());
    if (i % 2 == 0) noise.insert(0, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    EXPECT_GE(send(fd.get(), noise.data(), noise.size(), MSG_NOSIGNAL), 0);
  }
  EXPECT_EQ(StatusOf(run_dir()).sessions(), 0u);
}

TEST(Exhaustion, OutOfDescriptorsClientsAreToldAndServedAgainLater) {
  DaemonProcess daemon("/bin/sh", {"-c", absl::StrCat("ulimit -n 100; exec ", kBinary, " \"$@\""),
                                   "sh", "--limit=64MiB"});
  ASSERT_TRUE(daemon.ready()) << daemon.Log();
  constexpr int kExhausted = static_cast<int>(absl::StatusCode::kResourceExhausted);
  std::vector<std::unique_ptr<RawClient>> attached;
  int refused = 0;
  std::string message;
  while (refused < 5) {
    auto client = std::make_unique<RawClient>(daemon.run_dir());
    const int code = client->Attach();
    if (code == 0) {
      attached.push_back(std::move(client));
      ASSERT_LT(attached.size(), 100u);
    } else {
      EXPECT_EQ(code, kExhausted) << client->reply().message;
      message = client->reply().message;
      ++refused;
    }
  }
  EXPECT_THAT(message, HasSubstr("Too many open files"));
  EXPECT_GT(attached.size(), 5u);
  for (const auto& client : attached) EXPECT_EQ(client->Detach(), 0);
  attached.clear();
  EXPECT_EQ(StatusOf(daemon.run_dir()).sessions(), 0u);
  RawClient client(daemon.run_dir());
  EXPECT_EQ(client.Attach(), 0);
  EXPECT_EQ(daemon.Stop(SIGTERM), 0);
}

// Stopping.

TEST_F(DaemonTest, DrainingEndsStreamsWithUnavailable) {
  RawClient client(run_dir());
  ASSERT_EQ(client.Attach(), 0);
  RawClient::Call call = client.Open();
  v1::ExchangeResponse response;
  ASSERT_TRUE(RawClient::Exchange(call, Want(kClassOf64, 1), &response));
  std::byte* arena = client.MapArena(0);
  ASSERT_EQ(kill(daemon_.pid(), SIGTERM), 0);
  EXPECT_FALSE(call.stream->Read(&response));
  EXPECT_EQ(call.stream->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(daemon_.Wait(), 0) << daemon_.Log();
  EXPECT_TRUE(client.AtEndOfFile());
  arena[0] = std::byte{1};  // what is mapped stays
}

TEST_F(DaemonTest, AClientThatReadsNothingCannotHoldUpTheStop) {
  RawClient silent(run_dir());
  ASSERT_EQ(silent.Attach(), 0);
  RawClient::Call flood = silent.Open();
  std::thread writer([&] {
    v1::ExchangeRequest request;
    for (int i = 0; i < 256; ++i) *request.add_wants() = Want(kClassOf64, 1024).wants(0);
    while (flood.stream->Write(request)) {
    }
  });
  WaitUntil([this] { return StatusOf(run_dir()).exchange_messages_total() > 0; });
  EXPECT_EQ(daemon_.Stop(SIGTERM), 0) << daemon_.Log();
  writer.join();
}

TEST(Stop, IdleClientsDoNotHoldItUp) {
  const std::string config = testing::TempDir() + "/patient.textproto";
  std::ofstream(config) << "grace_ms: 600000\n";
  DaemonProcess daemon(kBinary, {"--config=" + config, "--limit=64MiB"});
  ASSERT_TRUE(daemon.ready()) << daemon.Log();
  RawClient attached(daemon.run_dir());
  ASSERT_EQ(attached.Attach(), 0);
  RawClient idle(daemon.run_dir());
  ASSERT_EQ(idle.Attach(), 0);
  RawClient::Call call = idle.Open();
  v1::ExchangeResponse response;
  ASSERT_TRUE(RawClient::Exchange(call, Want(kClassOf64, 1), &response));
  EXPECT_EQ(daemon.Stop(SIGTERM), 0) << daemon.Log();  // long before its grace ends
  EXPECT_FALSE(call.stream->Read(&response));
  EXPECT_EQ(call.stream->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST(Stop, ATrimThatWaitsForASilentSessionEndsEarlyWithItsAnswer) {
  DaemonProcess daemon(kBinary, {"--limit=64MiB"});
  ASSERT_TRUE(daemon.ready()) << daemon.Log();
  RawClient silent(daemon.run_dir());
  ASSERT_EQ(silent.Attach(), 0);
  RawClient::Call call = silent.Open();
  v1::ExchangeResponse response;
  ASSERT_TRUE(RawClient::Exchange(call, Want(kClassOf64, 1), &response));
  std::thread trim([&] {
    v1::TrimRequest request;
    request.set_wait_ms(60'000);
    const v1::TrimResponse trimmed = Trim(daemon.run_dir(), request);
    ASSERT_EQ(trimmed.pools_size(), 1);
    EXPECT_EQ(trimmed.pools(0).silent_size(), 1);
  });
  ASSERT_TRUE(silent.Receive<layout::RecallNotice>().ok());  // the daemon waits for the answer
  EXPECT_EQ(daemon.Stop(SIGTERM), 0) << daemon.Log();
  trim.join();
}

// Starting.

TEST(Start, WrongFlagsAreExitTwoWithOneLine) {
  for (const char* flag : {"--nonsense", "--limit=12q", "--limit=1", "--limit=-1", "positional"}) {
    DaemonProcess daemon(kBinary, {flag});
    EXPECT_FALSE(daemon.ready());
    EXPECT_EQ(daemon.Wait(), 2) << flag;
    EXPECT_THAT(daemon.Log(), testing::MatchesRegex("spanpoold: [^\n]*\n")) << flag;
  }
}

TEST(Start, ABrokenConfigurationIsRefusedWithFileAndLine) {
  const std::string config = testing::TempDir() + "/broken.textproto";
  std::ofstream(config) << "grace_ms: 5\npool { name: \"a\" limit_bytes: 7 }\n";
  DaemonProcess daemon(kBinary, {"--config=" + config});
  EXPECT_EQ(daemon.Wait(), 1);
  EXPECT_THAT(daemon.Log(), HasSubstr(config + ":2:18: limit_bytes is 7; expected 1048576"));
  DaemonProcess missing(kBinary, {"--config=/nonexistent"});
  EXPECT_EQ(missing.Wait(), 1);
  EXPECT_THAT(missing.Log(), HasSubstr("/nonexistent"));
}

TEST(Start, ARunDirectoryThatCannotBeWrittenIsAClearError) {
  DaemonProcess daemon(kBinary, {}, "/proc/spanpool");
  EXPECT_EQ(daemon.Wait(), 1);
  EXPECT_THAT(daemon.Log(), HasSubstr("cannot create run directory /proc/spanpool"));
}

TEST(Start, AConfigurationIsServedAsItSays) {
  const std::string config = testing::TempDir() + "/good.textproto";
  std::ofstream(config) << "log { format: JSON } grace_ms: 100\n"
                           "pool { name: \"a\" limit_bytes: 2097152 }\n"
                           "pool { name: \"b\" limit_bytes: 4194304 reserve_bytes: 0 }\n";
  DaemonProcess daemon(kBinary, {"--config=" + config});
  ASSERT_TRUE(daemon.ready()) << daemon.Log();
  RawClient a(daemon.run_dir()), b(daemon.run_dir()), none(daemon.run_dir());
  EXPECT_EQ(a.Attach("a"), 0);
  EXPECT_EQ(b.Attach("b"), 0);
  EXPECT_EQ(none.Attach("default"), static_cast<int>(absl::StatusCode::kNotFound));
  EXPECT_EQ(b.reply().limit_bytes, 4194304u);
  EXPECT_NE(a.reply().incarnation, b.reply().incarnation);
  EXPECT_EQ(daemon.Stop(SIGTERM), 0);
  EXPECT_THAT(daemon.Log(), HasSubstr("{\"time\":\""));
}

TEST(Start, AFreshPoolKeepsItsReserveReady) {
  DaemonProcess daemon(kBinary, {"--limit=64MiB"});
  ASSERT_TRUE(daemon.ready());
  WaitUntil([&] { return StatusOf(daemon.run_dir()).free_bytes() >= 64u << 20; });
}

int RunAct(const std::string& name, const std::string& run_dir, const Arguments& arguments) {
  for (const Act& act : kActs) {
    if (name == act.name) return act.run(run_dir, arguments);
  }
  return 97;
}

}  // namespace
}  // namespace spanpool

int main(int argc, char** argv) {
  if (argc >= 4 && std::string(argv[1]) == "act") {
    return spanpool::RunAct(argv[2], argv[3], std::vector<std::string>(argv + 4, argv + argc));
  }
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
