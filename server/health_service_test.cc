#include "server/health_service.h"

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

namespace spanpool {
namespace {

using grpc::health::v1::Health;
using grpc::health::v1::HealthCheckRequest;
using grpc::health::v1::HealthCheckResponse;

class HealthServiceTest : public ::testing::Test {
 protected:
  HealthServiceTest() {
    service_.SetServing("");
    service_.SetServing("pool/default");
    grpc::ServerBuilder builder;
    builder.RegisterService(&service_);
    server_ = builder.BuildAndStart();
    stub_ = Health::NewStub(server_->InProcessChannel(grpc::ChannelArguments()));
  }
  ~HealthServiceTest() override {
    service_.Stop();
    server_->Shutdown();
  }

  static HealthCheckRequest RequestFor(const std::string& service) {
    HealthCheckRequest request;
    request.set_service(service);
    return request;
  }

  struct Watcher {
    grpc::ClientContext context;
    std::unique_ptr<grpc::ClientReader<HealthCheckResponse>> reader;
    HealthCheckResponse heard;
  };
  std::unique_ptr<Watcher> Watch(const std::string& service) {
    auto watcher = std::make_unique<Watcher>();
    watcher->reader = stub_->Watch(&watcher->context, RequestFor(service));
    return watcher;
  }

  HealthService service_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<Health::Stub> stub_;
};

TEST_F(HealthServiceTest, CheckKnowsWhatServesAndWhatNobodyHeardOf) {
  for (const char* service : {"", "pool/default"}) {
    grpc::ClientContext context;
    HealthCheckResponse response;
    ASSERT_TRUE(stub_->Check(&context, RequestFor(service), &response).ok());
    EXPECT_EQ(response.status(), HealthCheckResponse::SERVING);
  }
  grpc::ClientContext context;
  HealthCheckResponse response;
  EXPECT_EQ(stub_->Check(&context, RequestFor("pool/nope"), &response).error_code(),
            grpc::StatusCode::NOT_FOUND);
}

TEST_F(HealthServiceTest, AWatcherHearsTheStateAndTheEndOfIt) {
  const auto watcher = Watch("pool/default");
  ASSERT_TRUE(watcher->reader->Read(&watcher->heard));
  EXPECT_EQ(watcher->heard.status(), HealthCheckResponse::SERVING);
  service_.Stop();
  ASSERT_TRUE(watcher->reader->Read(&watcher->heard));
  EXPECT_EQ(watcher->heard.status(), HealthCheckResponse::NOT_SERVING);
  EXPECT_FALSE(watcher->reader->Read(&watcher->heard));
  EXPECT_EQ(watcher->reader->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST_F(HealthServiceTest, AWatcherOfWhatIsNotThereHearsOnceItIs) {
  const auto watcher = Watch("pool/late");
  ASSERT_TRUE(watcher->reader->Read(&watcher->heard));
  EXPECT_EQ(watcher->heard.status(), HealthCheckResponse::SERVICE_UNKNOWN);
  service_.SetServing("pool/late");
  ASSERT_TRUE(watcher->reader->Read(&watcher->heard));
  EXPECT_EQ(watcher->heard.status(), HealthCheckResponse::SERVING);
}

TEST_F(HealthServiceTest, SoManyMayWatchAndOneThatLeavesMakesRoom) {
  std::vector<std::unique_ptr<Watcher>> watchers;
  for (int i = 0; i < HealthService::kMaxWatchers; ++i) {
    watchers.push_back(Watch(""));
    ASSERT_TRUE(watchers.back()->reader->Read(&watchers.back()->heard));
  }
  const auto refused = Watch("");
  EXPECT_FALSE(refused->reader->Read(&refused->heard));
  EXPECT_EQ(refused->reader->Finish().error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);

  watchers.front()->context.TryCancel();
  watchers.front()->reader->Finish();
  for (;;) {  // until the service has noticed, at the latest a second later
    const auto watcher = Watch("");
    if (watcher->reader->Read(&watcher->heard)) break;
    ASSERT_EQ(watcher->reader->Finish().error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  }
}

}  // namespace
}  // namespace spanpool
