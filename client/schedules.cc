#include "client/schedules.h"

#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>

#include "allocator/check.h"
#include "proto/layout/step.h"

namespace spanpool::internal {
namespace {

// What was chosen so far, and what else there was to choose: an odometer over all runs.
class Choices {
 public:
  // One of 0 … `options` - 1: as in the run before, but for the last choice that could be another.
  int Choose(int options) {
    if (next_ == made_.size()) made_.push_back({0, options});
    SPANPOOL_CHECK_EQ(made_[next_].options, options) << "the programs are not deterministic";
    return made_[next_++].chosen;
  }
  // False: all runs were made.
  bool NextRun() {
    next_ = 0;
    while (!made_.empty() && made_.back().chosen + 1 == made_.back().options) made_.pop_back();
    if (made_.empty()) return false;
    ++made_.back().chosen;
    return true;
  }

 private:
  struct Choice {
    int chosen;
    int options;
  };
  std::vector<Choice> made_;
  size_t next_ = 0;
};

// Handed from thread to thread. Not std::binary_semaphore, which in GCC 12 can sleep through its
// release.
class Baton {
 public:
  void Give() {
    const std::lock_guard<std::mutex> lock(mu_);
    here_ = true;
    given_.notify_one();
  }
  void Await() {
    std::unique_lock<std::mutex> lock(mu_);
    given_.wait(lock, [this] { return here_; });
    here_ = false;
  }

 private:
  std::mutex mu_;
  std::condition_variable given_;
  bool here_ = false;
};

// The threads of one RunAll. All but one wait for their turn, so that nothing here needs a lock.
class Stage {
 public:
  Stage(const Schedules::Options& options, const std::vector<std::function<void()>>& programs)
      : options_(options) {
    for (const auto& program : programs) actors_.push_back(std::make_unique<Actor>(program));
    on_stage = this;
    layout::step_hook.store([](const char*) {
      if (on_stage != nullptr && playing != nullptr) on_stage->Step();
    });
    for (auto& actor : actors_) {
      actor->thread = std::thread([this, mine = actor.get()] { Play(mine); });
    }
  }
  ~Stage() {
    ending_ = true;
    for (auto& actor : actors_) {
      actor->turn.Give();
      actor->thread.join();
    }
    layout::step_hook.store(nullptr);
    on_stage = nullptr;
  }

  void RunOnce() {
    preemptions_left_ = options_.preemptions;
    deaths_left_ = options_.deaths;
    for (auto& actor : actors_) actor->done = false;
    GoOn();
    all_done_.Await();
  }
  bool NextRun() { return choices_.NextRun(); }

 private:
  struct Actor {
    explicit Actor(const std::function<void()>& program) : program(program) {}
    const std::function<void()>& program;
    Baton turn;
    bool done = false;
    std::thread thread;
  };

  void Play(Actor* mine) {
    playing = mine;
    for (;;) {
      mine->turn.Await();
      if (ending_) return;
      try {
        mine->program();
      } catch (const Schedules::Death&) {
      }
      mine->done = true;
      GoOn();
    }
  }

  // The turn goes to any of those that are not done.
  void GoOn() {
    const std::vector<Actor*> others = Others(nullptr);
    if (others.empty()) {
      all_done_.Give();
    } else {
      others[static_cast<size_t>(choices_.Choose(static_cast<int>(others.size())))]->turn.Give();
    }
  }

  // The actor that plays goes on, or gives the turn to another, or dies.
  void Step() {
    Actor* const mine = playing;
    const std::vector<Actor*> others = preemptions_left_ > 0 ? Others(mine) : std::vector<Actor*>();
    const int options = 1 + static_cast<int>(others.size()) + (deaths_left_ > 0 ? 1 : 0);
    const int chosen = choices_.Choose(options);
    if (chosen == 0) return;
    if (chosen > static_cast<int>(others.size())) {
      --deaths_left_;
      throw Schedules::Death();
    }
    --preemptions_left_;
    others[static_cast<size_t>(chosen - 1)]->turn.Give();
    mine->turn.Await();
  }

  std::vector<Actor*> Others(const Actor* but) const {
    std::vector<Actor*> others;
    for (const auto& actor : actors_) {
      if (!actor->done && actor.get() != but) others.push_back(actor.get());
    }
    return others;
  }

  static Stage* on_stage;
  static thread_local Actor* playing;

  const Schedules::Options options_;
  std::vector<std::unique_ptr<Actor>> actors_;
  Choices choices_;
  int preemptions_left_ = 0;
  int deaths_left_ = 0;
  bool ending_ = false;
  Baton all_done_;
};

Stage* Stage::on_stage = nullptr;
thread_local Stage::Actor* Stage::playing = nullptr;

}  // namespace

uint64_t Schedules::RunAll(const Options& options, const std::function<void()>& prepare,
                           const std::vector<std::function<void()>>& programs,
                           const std::function<bool()>& check) {
  Stage stage(options, programs);
  uint64_t runs = 0;
  do {
    prepare();
    stage.RunOnce();
    ++runs;
    if (!check()) break;
  } while (stage.NextRun());
  return runs;
}

}  // namespace spanpool::internal
