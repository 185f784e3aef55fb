// Answers empty messages, by one of the three APIs that gRPC offers a server.
//
// usage: grpc_echo_server sync|completion_queue|callback SOCKET
//
// Serves on the unix socket and says READY; ends when its standard input does.

#include <grpcpp/grpcpp.h>
#include <unistd.h>

#include <iostream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "bench/grpc_echo.grpc.pb.h"

namespace spanpool::bench {
namespace {

// As many threads as the daemon has for Exchange.
constexpr int kQueueThreads = 2;

class SyncEcho final : public Echo::Service {
 public:
  grpc::Status Call(grpc::ServerContext*, const EchoMessage*, EchoMessage*) override {
    return grpc::Status::OK;
  }
  grpc::Status Talk(grpc::ServerContext*,
                    grpc::ServerReaderWriter<EchoMessage, EchoMessage>* stream) override {
    EchoMessage message;
    while (stream->Read(&message)) {
      if (!stream->Write(message)) break;
    }
    return grpc::Status::OK;
  }
};

class CallbackEcho final : public Echo::CallbackService {
 public:
  grpc::ServerUnaryReactor* Call(grpc::CallbackServerContext* context, const EchoMessage*,
                                 EchoMessage*) override {
    grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }
  grpc::ServerBidiReactor<EchoMessage, EchoMessage>* Talk(grpc::CallbackServerContext*) override {
    class Reactor final : public grpc::ServerBidiReactor<EchoMessage, EchoMessage> {
     public:
      Reactor() { StartRead(&message_); }
      void OnReadDone(bool ok) override {
        if (ok) {
          StartWrite(&message_);
        } else {
          Finish(grpc::Status::OK);
        }
      }
      void OnWriteDone(bool ok) override {
        if (ok) {
          StartRead(&message_);
        } else {
          Finish(grpc::Status::OK);
        }
      }
      void OnDone() override { delete this; }

     private:
      EchoMessage message_;
    };
    return new Reactor;
  }
};

// One call on the completion queue, from before it comes until its end; deletes itself.
class QueueCall {
 public:
  virtual ~QueueCall() = default;
  virtual void On(bool ok) = 0;
};

class QueuedCall final : public QueueCall {
 public:
  QueuedCall(Echo::AsyncService* service, grpc::ServerCompletionQueue* queue)
      : service_(service), queue_(queue), responder_(&context_) {
    service->RequestCall(&context_, &message_, &responder_, queue, queue, this);
  }
  void On(bool ok) override {
    if (!ok || finishing_) {
      delete this;
      return;
    }
    new QueuedCall(service_, queue_);
    finishing_ = true;
    responder_.Finish(message_, grpc::Status::OK, this);
  }

 private:
  Echo::AsyncService* const service_;
  grpc::ServerCompletionQueue* const queue_;
  grpc::ServerContext context_;
  EchoMessage message_;
  grpc::ServerAsyncResponseWriter<EchoMessage> responder_;
  bool finishing_ = false;
};

class QueuedTalk final : public QueueCall {
 public:
  QueuedTalk(Echo::AsyncService* service, grpc::ServerCompletionQueue* queue)
      : service_(service), queue_(queue), stream_(&context_) {
    service->RequestTalk(&context_, &stream_, queue, queue, this);
  }
  void On(bool ok) override {
    switch (state_) {
      case State::kWaiting:
        if (!ok) break;
        new QueuedTalk(service_, queue_);
        state_ = State::kReading;
        stream_.Read(&message_, this);
        return;
      case State::kReading:
        state_ = ok ? State::kWriting : State::kFinishing;
        if (ok) {
          stream_.Write(message_, this);
        } else {
          stream_.Finish(grpc::Status::OK, this);
        }
        return;
      case State::kWriting:
        state_ = ok ? State::kReading : State::kFinishing;
        if (ok) {
          stream_.Read(&message_, this);
        } else {
          stream_.Finish(grpc::Status::OK, this);
        }
        return;
      case State::kFinishing:
        break;
    }
    delete this;
  }

 private:
  enum class State { kWaiting, kReading, kWriting, kFinishing };
  Echo::AsyncService* const service_;
  grpc::ServerCompletionQueue* const queue_;
  grpc::ServerContext context_;
  EchoMessage message_;
  grpc::ServerAsyncReaderWriter<EchoMessage, EchoMessage> stream_;
  State state_ = State::kWaiting;
};

int Serve(const std::string& api, const std::string& socket) {
  grpc::ServerBuilder builder;
  builder.AddListeningPort("unix:" + socket, grpc::InsecureServerCredentials());
  SyncEcho sync;
  CallbackEcho callback;
  Echo::AsyncService async;
  std::unique_ptr<grpc::ServerCompletionQueue> queue;
  if (api == "sync") {
    builder.RegisterService(&sync);
  } else if (api == "callback") {
    builder.RegisterService(&callback);
  } else if (api == "completion_queue") {
    builder.RegisterService(&async);
    queue = builder.AddCompletionQueue();
  } else {
    std::cerr << "no API is called " << api << "\n";
    return 2;
  }
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (server == nullptr) {
    std::cerr << "cannot serve on " << socket << "\n";
    return 1;
  }
  std::vector<std::thread> threads;
  if (queue != nullptr) {
    new QueuedCall(&async, queue.get());
    new QueuedTalk(&async, queue.get());
    for (int i = 0; i < kQueueThreads; ++i) {
      threads.emplace_back([&queue] {
        void* tag;
        bool ok;
        while (queue->Next(&tag, &ok)) static_cast<QueueCall*>(tag)->On(ok);
      });
    }
  }
  std::cout << "READY" << std::endl;
  char byte;
  while (read(STDIN_FILENO, &byte, 1) > 0) {
  }
  // Nothing is worth an orderly end here: whoever measured is done.
  _exit(0);
}

}  // namespace
}  // namespace spanpool::bench

int main(int argc, char** argv) {
  if (argc != 3) {
    std::cerr << "usage: grpc_echo_server sync|completion_queue|callback SOCKET\n";
    return 2;
  }
  return spanpool::bench::Serve(argv[1], argv[2]);
}
