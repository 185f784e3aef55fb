// A container engine for the whole of a test program, and the images in it.
//
// Where no engine runs one is started (deploy/engine); where none can be, tests are to be skipped
// and say why. The images, spanpool:test and spanpool-example:test, hold the binaries that Bazel
// built, put there by the last stages of deploy/Dockerfile.

#ifndef SPANPOOL_TESTS_DEPLOY_ENGINE_H_
#define SPANPOOL_TESTS_DEPLOY_ENGINE_H_

#include <memory>
#include <string>

#include "gtest/gtest.h"
#include "tests/support/process.h"

namespace spanpool::testing {

// To be given to AddGlobalTestEnvironment. While it is set up DOCKER_HOST names the engine.
class Engine : public ::testing::Environment {
 public:
  void SetUp() override;
  void TearDown() override;

  // Why there is no engine; empty if there is one.
  static const std::string& WhyNone();

 private:
  std::unique_ptr<Process> hold_;
};

// What `command` printed, without the last newline; a failed expectation if it failed.
std::string Must(const std::string& command);

}  // namespace spanpool::testing

#endif  // SPANPOOL_TESTS_DEPLOY_ENGINE_H_
