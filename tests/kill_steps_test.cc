// A client is killed, or stopped, at every step of everything it does with shared blocks.
//
// For each operation a process of its own carries it out and dies at its first step; another at its
// second; and so on until one comes through. Meanwhile another process opens and drops the blocks
// in question without a pause, and after each death the whole pool is audited. Then the same with
// processes that are stopped at each step: others go on, one of them dies in the middle of a step
// on the same block, so that its references are recounted while the stopped one may be in flight;
// then it goes on, and finishes.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "tests/support/actor.h"
#include "tests/support/daemon.h"

namespace spanpool::testing {
namespace {

using ::testing::AnyOf;
using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::UnorderedElementsAre;

constexpr int kMostSteps = 500;

// What a test has at hand.
struct Stage {
  Daemon& daemon;
  Actor& victim;   // attached; what is killed or stopped
  Actor& partner;  // attached, and not harmed
  // A block that the partner holds, whatever happens; the churning process opens it all the time.
  const std::string& common;
};

struct Operation {
  const char* name;
  // Brings the victim to where it can begin, and returns the command that is the operation.
  std::function<std::string(Stage&)> prepare;
  // What the partner does while the victim is stopped.
  std::function<void(Stage&)> meanwhile = [](Stage&) {};
  // What is to be when the victim has come through, before it is killed.
  std::function<void(Stage&)> done = [](Stage&) {};
  // What the partner does when the victim is dead.
  std::function<void(Stage&)> clean_up = [](Stage&) {};
  // The block that the operation is about, as far as others can open it. Empty: none.
  std::function<std::string(Stage&)> block = [](Stage&) { return ""; };
};

std::string Common(Stage& stage) { return stage.common; }
void DropFromPartner(Stage& stage) { (void)stage.partner.Do("drop p"); }
std::string SentByPartner(Stage& stage) {
  stage.partner.Must("allocate p 300");
  stage.partner.Must("fill p 8");
  return stage.partner.Must("send p");
}

// The channel "ch", which both have open.
void OpenChannel(Stage& stage) {
  stage.victim.Must("open_channel ch " + stage.partner.Must("create_channel ch 4"));
}
// A buffer of the partner's goes into the channel.
void SendFromPartner(Stage& stage, int seed) {
  stage.partner.Must("allocate p 300");
  stage.partner.Must(absl::StrCat("fill p ", seed));
  stage.partner.Must("channel_send ch p");
}
// Which of the seeds 1 to 3 the buffer was filled with; 0: none of them.
int SeedOf(Actor& actor, const std::string& buffer) {
  for (int seed = 1; seed <= 3; ++seed) {
    if (actor.Do(absl::StrCat("check ", buffer, " ", seed)).ok()) return seed;
  }
  return 0;
}
// The partner empties the channel: what was in it, in that order.
std::vector<int> Drain(Stage& stage) {
  std::vector<int> seeds;
  absl::StatusOr<std::string> got;
  while ((got = stage.partner.Do("channel_receive ch got 0")).ok()) {
    seeds.push_back(SeedOf(stage.partner, "got"));
    stage.partner.Must("drop got");
  }
  EXPECT_TRUE(absl::IsDeadlineExceeded(got.status()) || absl::IsOutOfRange(got.status()))
      << got.status();
  return seeds;
}
void DropChannel(Stage& stage) { stage.partner.Must("drop_channel ch"); }

// From here on nothing that the victim has asked for is carried out any more.
void AwaitVictimsDeath(Stage& stage) {
  stage.victim.process().Signal(SIGKILL);
  EXPECT_TRUE(stage.daemon.Eventually([](const auto& pool) { return pool.sessions() == 3; }));
}
// A name that was to go with the victim: it stands no more, or not for long.
void ExpectNameGoes(Stage& stage) {
  AwaitVictimsDeath(stage);
  EXPECT_TRUE(stage.daemon.Eventually([&stage](const auto&) {
    const absl::Status opened = stage.partner.Do("open_name n name").status();
    (void)stage.partner.Do("drop n");
    return absl::IsNotFound(opened);
  }));
}
// A name that was to stay: it stands for what one of the seeds filled, or not at all if
// `may_be_gone`.
void ExpectNameOpens(Stage& stage, const std::vector<std::string>& seeds, bool may_be_gone) {
  AwaitVictimsDeath(stage);
  const absl::Status opened = stage.partner.Do("open_name n name").status();
  if (!opened.ok()) {
    EXPECT_TRUE(may_be_gone && absl::IsNotFound(opened)) << opened;
    return;
  }
  bool good = false;
  for (const std::string& seed : seeds) good |= stage.partner.Do("check n " + seed).ok();
  EXPECT_TRUE(good);
  stage.partner.Must("unpublish name");
  stage.partner.Must("drop n");
}

std::vector<Operation> Operations() {
  return {
      {.name = "share",
       .prepare =
           [](Stage& stage) {
             stage.victim.Must("allocate b 300");
             return "share b";
           }},
      {.name = "share a large block",
       .prepare =
           [](Stage& stage) {
             stage.victim.Must("allocate b 100000");
             return "share b";
           }},
      // The first reference of a thread takes the long way, the second has a slot at hand.
      {.name = "share once more",
       .prepare =
           [](Stage& stage) {
             for (const char* buffer : {"a", "b"}) {
               stage.victim.Must(absl::StrCat("allocate ", buffer, " 300"));
             }
             stage.victim.Must("share a");
             return "share b";
           }},
      {.name = "open",
       .prepare = [](Stage& stage) { return "open b " + stage.common; },
       .block = Common},
      {.name = "open once more",
       .prepare =
           [](Stage& stage) {
             stage.victim.Must("open a " + stage.common);
             return "open b " + stage.common;
           },
       .block = Common},
      {.name = "receive",
       .prepare = [](Stage& stage) { return "open b " + SentByPartner(stage); },
       .clean_up =
           [](Stage& stage) {
             // Whether it was received or not, nothing of it is left when both have let go.
             (void)stage.partner.Do("allocate p 300");
             (void)stage.partner.Do("share p");
             DropFromPartner(stage);
           }},
      {.name = "receive once more",
       .prepare =
           [](Stage& stage) {
             stage.victim.Must("open a " + stage.common);
             return "open b " + SentByPartner(stage);
           },
       .clean_up =
           [](Stage& stage) {
             (void)stage.partner.Do("allocate p 300");
             (void)stage.partner.Do("share p");
             DropFromPartner(stage);
           }},
      {.name = "release",
       .prepare =
           [](Stage& stage) {
             stage.victim.Must("open b " + stage.common);
             return "drop b";
           },
       .block = Common},
      {.name = "release one's own block, which nobody else has",
       .prepare =
           [](Stage& stage) {
             stage.victim.Must("allocate b 300");
             stage.victim.Must("share b");
             return "drop b";
           }},
      {.name = "release one's own block, which another has",
       .prepare =
           [](Stage& stage) {
             stage.victim.Must("allocate b 300");
             stage.partner.Must("open p " + stage.victim.Must("share b"));
             return "drop b";
           },
       .clean_up = DropFromPartner,
       .block = [](Stage& stage) { return stage.partner.Must("share p"); }},
      {.name = "release another's block, which nobody else has",
       .prepare =
           [](Stage& stage) {
             stage.victim.Must("open b " + SentByPartner(stage));
             // The partner lets go.
             stage.partner.Must("allocate p 300");
             stage.partner.Must("share p");
             return "drop b";
           },
       .clean_up = DropFromPartner},
      {.name = "send",
       .prepare =
           [](Stage& stage) {
             stage.victim.Must("allocate b 300");
             return "send b";
           }},
      {.name = "send what is shared",
       .prepare =
           [](Stage& stage) {
             stage.victim.Must("allocate b 300");
             stage.partner.Must("open p " + stage.victim.Must("share b"));
             return "send b";
           },
       .clean_up = DropFromPartner,
       .block = [](Stage& stage) { return stage.partner.Must("share p"); }},
      {.name = "send what has other owners",
       .prepare =
           [](Stage& stage) {
             stage.victim.Must("allocate b 300");
             stage.victim.Must("ref other b");
             return "send b";
           }},
      {.name = "send on",
       .prepare =
           [](Stage& stage) {
             stage.victim.Must("open b " + SentByPartner(stage));
             return "send b";
           }},
      {.name = "let go of what has arrived",
       .prepare =
           [](Stage& stage) {
             stage.victim.Must("alone");  // or its background thread may be first
             stage.victim.Must("allocate b 300");
             stage.partner.Must("open p " + stage.victim.Must("send b"));
             return "settle";
           },
       .clean_up = DropFromPartner,
       .block = [](Stage& stage) { return stage.partner.Must("share p"); }},
      {.name = "take back",
       .prepare =
           [](Stage& stage) {
             stage.victim.Must("allocate b 300");
             return "take_back b " + stage.victim.Must("send b");
           }},
      {.name = "publish",
       .prepare =
           [](Stage& stage) {
             stage.victim.Must("allocate b 300");
             return "publish b name";
           },
       .clean_up = ExpectNameGoes},
      {.name = "publish to stay",
       .prepare =
           [](Stage& stage) {
             stage.victim.Must("allocate b 300");
             stage.victim.Must("fill b 6");
             return "publish b name outlive";
           },
       .clean_up = [](Stage& stage) { ExpectNameOpens(stage, {"6"}, /*may_be_gone=*/true); }},
      {.name = "publish what another has",
       .prepare =
           [](Stage& stage) {
             stage.victim.Must("allocate b 300");
             stage.partner.Must("open p " + stage.victim.Must("share b"));
             return "publish b name";
           },
       .clean_up =
           [](Stage& stage) {
             ExpectNameGoes(stage);
             DropFromPartner(stage);
           },
       .block = [](Stage& stage) { return stage.partner.Must("share p"); }},
      {.name = "publish in place of another block",
       .prepare =
           [](Stage& stage) {
             for (const char* buffer : {"b", "c"}) {
               stage.victim.Must(absl::StrCat("allocate ", buffer, " 300"));
             }
             stage.victim.Must("fill b 6");
             stage.victim.Must("fill c 7");
             stage.victim.Must("publish b name outlive");
             return "publish c name outlive replace";
           },
       .clean_up =
           [](Stage& stage) {
             ExpectNameOpens(stage, {"6", "7"}, /*may_be_gone=*/false);
           }},
      {.name = "unpublish",
       .prepare =
           [](Stage& stage) {
             stage.victim.Must("allocate b 300");
             stage.victim.Must("fill b 6");
             stage.victim.Must("publish b name outlive");
             return "unpublish name";
           },
       .clean_up = [](Stage& stage) { ExpectNameOpens(stage, {"6"}, /*may_be_gone=*/true); }},
      {.name = "open by name",
       .prepare =
           [](Stage& stage) {
             stage.partner.Must("allocate p 300");
             stage.partner.Must("publish p name");
             return "open_name b name";
           },
       .clean_up =
           [](Stage& stage) {
             stage.partner.Must("unpublish name");
             DropFromPartner(stage);
           },
       .block = [](Stage& stage) { return stage.partner.Must("share p"); }},
      {.name = "channel send",
       .prepare =
           [](Stage& stage) {
             OpenChannel(stage);
             SendFromPartner(stage, 1);
             stage.victim.Must("allocate b 300");
             stage.victim.Must("fill b 2");
             return "channel_send ch b";
           },
       .meanwhile = [](Stage& stage) { SendFromPartner(stage, 3); },
       .done =
           [](Stage& stage) {
             EXPECT_THAT(Drain(stage),
                         AnyOf(ElementsAre(1, 2), ElementsAre(1, 2, 3), ElementsAre(1, 3, 2)));
           },
       .clean_up =
           [](Stage& stage) {
             // Nothing if the victim has come through. What it sent before it died is there for
             // the grace period.
             EXPECT_THAT(Drain(stage), AnyOf(IsEmpty(), ElementsAre(1), ElementsAre(1, 2)));
             DropChannel(stage);
           }},
      {.name = "channel send what another has",
       .prepare =
           [](Stage& stage) {
             OpenChannel(stage);
             stage.victim.Must("allocate b 300");
             stage.victim.Must("fill b 2");
             stage.partner.Must("open keep " + stage.victim.Must("share b"));
             return "channel_send ch b";
           },
       .meanwhile = [](Stage& stage) { SendFromPartner(stage, 3); },
       .done =
           [](Stage& stage) {
             EXPECT_THAT(Drain(stage), AnyOf(ElementsAre(2), ElementsAre(2, 3), ElementsAre(3, 2)));
           },
       .clean_up =
           [](Stage& stage) {
             EXPECT_THAT(Drain(stage), AnyOf(IsEmpty(), ElementsAre(2)));
             DropChannel(stage);
             stage.partner.Must("drop keep");
           },
       .block = [](Stage& stage) { return stage.partner.Must("share keep"); }},
      {.name = "channel receive",
       .prepare =
           [](Stage& stage) {
             OpenChannel(stage);
             stage.partner.Must("allocate p 300");
             stage.partner.Must("fill p 1");
             stage.partner.Must("ref keep p");
             stage.partner.Must("channel_send ch p");
             return "channel_receive ch b";
           },
       .meanwhile =
           [](Stage& stage) {
             SendFromPartner(stage, 2);
             stage.partner.Must("channel_receive ch r");  // what the victim has not taken yet
           },
       .done =
           [](Stage& stage) {
             std::vector<int> received = Drain(stage);
             received.push_back(SeedOf(stage.victim, "b"));
             if (stage.partner.Do("size r").ok()) {
               received.push_back(SeedOf(stage.partner, "r"));
               stage.partner.Must("drop r");
               EXPECT_THAT(received, UnorderedElementsAre(1, 2));
             } else {
               EXPECT_THAT(received, ElementsAre(1));
             }
           },
       .clean_up =
           [](Stage& stage) {
             // One comes through the channel yet, behind what the victim has not taken.
             SendFromPartner(stage, 2);
             EXPECT_THAT(Drain(stage), AnyOf(ElementsAre(2), ElementsAre(1, 2)));
             DropChannel(stage);
             stage.partner.Must("drop keep");
           },
       .block = [](Stage& stage) { return stage.partner.Must("share keep"); }},
      {.name = "channel close",
       .prepare =
           [](Stage& stage) {
             OpenChannel(stage);
             SendFromPartner(stage, 1);
             return "channel_close ch";
           },
       .done =
           [](Stage& stage) {
             EXPECT_THAT(Drain(stage), ElementsAre(1));
             EXPECT_TRUE(absl::IsOutOfRange(stage.partner.Do("channel_receive ch got").status()));
           },
       .clean_up =
           [](Stage& stage) {
             EXPECT_THAT(Drain(stage), AnyOf(IsEmpty(), ElementsAre(1)));
             DropChannel(stage);
           }},
      {.name = "exchange", .prepare = [](Stage&) { return "allocate b 5000"; }},
      {.name = "return",
       .prepare =
           [](Stage& stage) {
             for (int i = 0; i < 20; ++i) stage.victim.Must(absl::StrCat("allocate b", i, " 8000"));
             for (int i = 0; i < 20; ++i) stage.victim.Must(absl::StrCat("drop b", i));
             return "give_back";
           }},
      {.name = "return spans in which blocks live on",
       .prepare =
           [](Stage& stage) {
             stage.victim.Must("allocate b 300");
             stage.partner.Must("open p " + stage.victim.Must("share b"));
             stage.victim.Must("drop b");
             return "give_back";
           },
       .clean_up = DropFromPartner,
       .block = [](Stage& stage) { return stage.partner.Must("share p"); }},
      {.name = "sweep what others have let go of",
       .prepare =
           [](Stage& stage) {
             stage.victim.Must("allocate b 300");
             stage.partner.Must("open p " + stage.victim.Must("share b"));
             stage.victim.Must("drop b");
             stage.partner.Must("drop p");
             return "give_back";
           }},
      {.name = "leave",
       .prepare =
           [](Stage& stage) {
             stage.victim.Must("allocate b 300");
             stage.partner.Must("open p " + stage.victim.Must("share b"));
             stage.victim.Must("allocate c 300");
             stage.victim.Must("send c");
             stage.victim.Must("drop b");
             return "leave";
           },
       .clean_up = DropFromPartner,
       .block = [](Stage& stage) { return stage.partner.Must("share p"); }},
  };
}

class KillStepsTest : public ::testing::TestWithParam<size_t> {
 protected:
  KillStepsTest()
      : daemon_({.config = "pool { name: \"default\" limit_bytes: 268435456 reserve_bytes: 1048576 "
                           "transit_grace_ms: 50 }\n",
                 .flags = {},
                 .audited = true}) {
    for (Actor* actor : {&keeper_, &partner_, &churner_}) {
      actor->Must("attach " + daemon_.run_dir());
    }
    keeper_.Must("allocate common 1000");
    keeper_.Must("fill common 5");
    common_ = keeper_.Must("share common");
  }

  static const Operation& operation() {
    static const auto* const operations = new std::vector<Operation>(Operations());
    return (*operations)[GetParam()];
  }

  // After what happened to the victim, and with nobody in the middle of anything.
  void ExpectSound(const std::string& what) {
    EXPECT_TRUE(daemon_.EventuallySound()) << what;
    keeper_.Must("check common 5");
    EXPECT_EQ(daemon_.PoolStatus().suspect_blocks(), 0u) << what;
    EXPECT_EQ(daemon_.PoolStatus().lies_total(), 0u) << what;
  }

  void ExpectEmptyInTheEnd() {
    for (Actor* actor : {&keeper_, &partner_, &churner_}) {
      actor->process().CloseInput();
      EXPECT_EQ(actor->process().Wait(), 0);
    }
    EXPECT_TRUE(daemon_.EventuallyEmpty());
    EXPECT_TRUE(daemon_.EventuallySound());
  }

  Daemon daemon_;
  Actor keeper_;
  Actor partner_;
  Actor churner_;
  std::string common_;
  uint64_t deaths_ = 0;
};

std::string NameOf(const ::testing::TestParamInfo<size_t>& info) {
  std::string name = Operations()[info.param].name;
  std::string letters;
  bool up = true;
  for (const char c : name) {
    if (absl::ascii_isalnum(static_cast<unsigned char>(c))) {
      letters += up ? absl::ascii_toupper(static_cast<unsigned char>(c)) : c;
      up = false;
    } else {
      up = c == ' ';
    }
  }
  return letters;
}

INSTANTIATE_TEST_SUITE_P(Every, KillStepsTest, ::testing::Range(size_t{0}, Operations().size()),
                         NameOf);

TEST_P(KillStepsTest, KilledAtEveryStepItLeavesAnExactPool) {
  for (int step = 1;; ++step) {
    ASSERT_LT(step, kMostSteps) << "no end of steps";
    SCOPED_TRACE(absl::StrCat(operation().name, ", killed at step ", step));
    Actor victim = Actor::WithSteps();
    victim.Must("attach " + daemon_.run_dir());
    Stage stage{daemon_, victim, partner_, common_};
    const std::string command = operation().prepare(stage);
    const std::string block = operation().block(stage);
    churner_.Must("churn " + (block.empty() ? common_ : block));
    victim.Must(absl::StrCat("arm kill ", step));
    const bool survived = !absl::IsUnavailable(victim.Do(command).status());
    if (!survived) {
      EXPECT_EQ(victim.process().Wait(), 128 + SIGKILL);
      // Others have the block for as long as they like.
      if (!block.empty()) keeper_.Must("open k " + block);
    } else {
      victim.Must("passed");
      operation().done(stage);
      victim.process().Signal(SIGKILL);
    }
    ++deaths_;
    churner_.Must("still");
    (void)keeper_.Do("drop k");
    operation().clean_up(stage);
    EXPECT_TRUE(daemon_.EventuallyReaped(deaths_));
    ExpectSound(absl::StrCat(operation().name, ", killed at step ", step));
    if (HasFailure()) return;
    if (survived) {
      EXPECT_GT(step, 1) << "there is no step to be killed at";
      break;
    }
  }
  ExpectEmptyInTheEnd();
}

TEST_P(KillStepsTest, StoppedAtEveryStepItHoldsNobodyUpAndFinishesLater) {
  for (int step = 1;; ++step) {
    ASSERT_LT(step, kMostSteps) << "no end of steps";
    SCOPED_TRACE(absl::StrCat(operation().name, ", stopped at step ", step));
    Actor victim = Actor::WithSteps();
    victim.Must("attach " + daemon_.run_dir());
    Stage stage{daemon_, victim, partner_, common_};
    const std::string command = operation().prepare(stage);
    const std::string block = operation().block(stage);
    victim.Must(absl::StrCat("arm stop ", step));
    victim.Begin(command);
    const bool stopped = victim.process().StopsBeforeLine();
    if (stopped) {
      churner_.Must("churn " + (block.empty() ? common_ : block));
      // Another dies between counting up and holding: the block has to be recounted.
      const uint64_t recounts = daemon_.Recounts();
      Actor dying = Actor::WithSteps();
      dying.Must("attach " + daemon_.run_dir());
      dying.Must("arm kill open.2e");
      EXPECT_TRUE(
          absl::IsUnavailable(dying.Do("open d " + (block.empty() ? common_ : block)).status()));
      EXPECT_TRUE(daemon_.Eventually([](const auto& pool) { return pool.sessions() == 4; }));
      EXPECT_TRUE(daemon_.EventuallyReaped(++deaths_));
      EXPECT_EQ(daemon_.Recounts(), recounts + 1);
      // Nobody waits for the one that is stopped.
      keeper_.Must("open k " + (block.empty() ? common_ : block));
      keeper_.Must("drop k");
      operation().meanwhile(stage);
      churner_.Must("still");
      victim.process().Signal(SIGCONT);
    }
    const absl::StatusOr<std::string> answer = victim.End();
    EXPECT_TRUE(answer.ok()) << answer.status();
    victim.Must("passed");
    operation().done(stage);
    ExpectSound(absl::StrCat(operation().name, ", stopped at step ", step));
    victim.process().Signal(SIGKILL);
    ++deaths_;
    operation().clean_up(stage);
    EXPECT_TRUE(daemon_.EventuallyReaped(deaths_));
    ExpectSound(absl::StrCat(operation().name, ", killed after it was stopped at step ", step));
    if (HasFailure()) return;
    if (!stopped) break;
  }
  ExpectEmptyInTheEnd();
}

}  // namespace
}  // namespace spanpool::testing
