// A socket that stands between a client and its daemon, and can be cut: what a restart does to the
// streams of both, with neither of them ended.
//
// Thread-safe.

#ifndef SPANPOOL_TESTS_SUPPORT_RELAY_H_
#define SPANPOOL_TESTS_SUPPORT_RELAY_H_

#include <list>
#include <mutex>
#include <string>
#include <thread>

namespace spanpool::testing {

class Relay {
 public:
  // Listens at `path`; each connection there is passed on to one at `target`, byte by byte.
  Relay(std::string path, std::string target);
  ~Relay();
  Relay(const Relay&) = delete;
  Relay& operator=(const Relay&) = delete;

  // Ends every connection on both sides. New ones are passed on.
  void Cut();
  // From now on until Cut, what the daemon says is read and goes nowhere.
  void SwallowAnswers();
  // Ends every connection, and refuses new ones until Open.
  void Close();
  void Open();

 private:
  struct Pair {
    int client = -1;
    int daemon = -1;
  };

  void Listen();
  void Run();
  void Accept();
  // Passes on what there is; false: one side has ended.
  bool Pass(int from, int to, bool swallow);
  void Wake();
  void CutLocked();

  const std::string path_;
  const std::string target_;
  int wake_ = -1;

  std::mutex mu_;  // all below
  int listener_ = -1;
  std::list<Pair> pairs_;
  bool swallow_ = false;
  bool stop_ = false;

  std::thread thread_;
};

}  // namespace spanpool::testing

#endif  // SPANPOOL_TESTS_SUPPORT_RELAY_H_
