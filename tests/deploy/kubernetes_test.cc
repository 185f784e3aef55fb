// The Kubernetes manifests: rendered by kubectl, checked against the published API and the Pod
// Security Standards, and the daemon's pod run as podman runs it.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <regex>
#include <set>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"
#include "tests/deploy/engine.h"
#include "tests/support/actor.h"
#include "tests/support/process.h"
#include "tests/support/shell.h"

namespace spanpool::testing {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::UnorderedElementsAre;

constexpr uint64_t kMiB = uint64_t{1} << 20;

const auto* const engine = ::testing::AddGlobalTestEnvironment(new Engine);

// The objects of a kustomization, rendered and found valid.
json Render(const std::string& kustomization) {
  const std::string folder = TemporaryDirectory();
  // kubectl wants files, not links out of the folder.
  const ShellResult result = Shell(
      absl::StrCat("cp -rL ", Runfile("deploy/kubernetes"), " ", folder, " && kubectl kustomize ",
                   folder, "/kubernetes", kustomization, " > ", folder, "/rendered && python3 ",
                   Runfile("tests/deploy/manifests.py"), " < ", folder, "/rendered"));
  fs::remove_all(folder);
  EXPECT_TRUE(result.ok()) << result;
  return json::parse(result.output, nullptr, /*allow_exceptions=*/false);
}

json Find(const json& objects, const std::string& kind) {
  for (const json& object : objects) {
    if (object["kind"] == kind) return object;
  }
  ADD_FAILURE() << "no " << kind;
  return json::object();
}

uint64_t MiBytes(const std::string& quantity) {
  std::smatch match;
  if (!std::regex_match(quantity, match, std::regex("([0-9]+)Mi"))) {
    ADD_FAILURE() << quantity << " is not in Mi";
    return 0;
  }
  return std::stoull(match[1]);
}

// What of a pod deviates from the level "restricted" of the Pod Security Standards, in its words.
std::set<std::string> Deviations(const json& pod) {
  std::set<std::string> found;
  for (const char* host : {"hostNetwork", "hostPID", "hostIPC"}) {
    if (pod.value(host, false)) found.insert(host);
  }
  const std::set<std::string> volumes = {"configMap", "csi",       "downwardAPI",
                                         "emptyDir",  "ephemeral", "persistentVolumeClaim",
                                         "projected", "secret"};
  for (const json& volume : pod["volumes"]) {
    for (const auto& [type, unused] : volume.items()) {
      if (type != "name" && volumes.count(type) == 0) found.insert("volume " + type);
    }
  }
  const json pod_context = pod.value("securityContext", json::object());
  for (const char* kind : {"containers", "initContainers"}) {
    for (const json& container : pod.value(kind, json::array())) {
      const std::string name = container["name"];
      // A container's own settings win over its pod's.
      json context = pod_context;
      context.merge_patch(container.value("securityContext", json::object()));
      if (!context.value("runAsNonRoot", false)) found.insert(name + " runAsNonRoot");
      if (context.value("runAsUser", 1) == 0) found.insert(name + " runAsUser");
      if (context.value("privileged", false)) found.insert(name + " privileged");
      if (context.value("allowPrivilegeEscalation", true)) {
        found.insert(name + " allowPrivilegeEscalation");
      }
      if (context["seccompProfile"]["type"] != "RuntimeDefault") found.insert(name + " seccomp");
      if (context["capabilities"]["drop"] != json({"ALL"})) found.insert(name + " capabilities");
      for (const json& added : context["capabilities"].value("add", json::array())) {
        found.insert(absl::StrCat(name, " adds ", added.get<std::string>()));
      }
      // Not of the standard, but of ours.
      if (!context.value("readOnlyRootFilesystem", false)) found.insert(name + " writable root");
      for (const json& port : container.value("ports", json::array())) {
        if (port.contains("hostPort")) found.insert(name + " hostPort");
      }
    }
  }
  return found;
}

TEST(Kubernetes, TheDaemonIsRestrictedButForTheNodesDirectoryAndWhoMakesIt) {
  const json objects = Render("");
  const json pod = Find(objects, "DaemonSet")["spec"]["template"]["spec"];
  EXPECT_THAT(Deviations(pod), UnorderedElementsAre("volume hostPath", "directory runAsNonRoot",
                                                    "directory runAsUser", "directory adds CHOWN"));
  const json labels = Find(objects, "Namespace")["metadata"]["labels"];
  EXPECT_EQ(labels["pod-security.kubernetes.io/audit"], "restricted");
  EXPECT_EQ(labels["pod-security.kubernetes.io/warn"], "restricted");
  EXPECT_EQ(Find(objects, "NetworkPolicy")["spec"]["policyTypes"], json({"Ingress", "Egress"}));
  for (const json& object : objects) {
    if (object["kind"] != "Namespace") {
      EXPECT_EQ(object["metadata"]["namespace"], "spanpool");
    }
  }
}

TEST(Kubernetes, AClientIsRestrictedButForTheNodesDirectory) {
  const json pod = Find(Render("/example"), "Deployment")["spec"]["template"]["spec"];
  EXPECT_THAT(Deviations(pod), ElementsAre("volume hostPath"));
}

TEST(Kubernetes, UsersAndLimitsFollowFromTheConfiguration) {
  const json objects = Render("");
  const std::string config = Find(objects, "ConfigMap")["data"]["spanpoold.textproto"];
  std::smatch limit;
  ASSERT_TRUE(std::regex_search(config, limit, std::regex("limit_bytes: ([0-9]+)")));
  const uint64_t pool = std::stoull(limit[1]) / kMiB;
  const json container = Find(objects, "DaemonSet")["spec"]["template"]["spec"]["containers"][0];
  // deploy/README.md, "Sizing".
  EXPECT_EQ(MiBytes(container["resources"]["limits"]["memory"]), pool + pool / 8 + pool / 32 + 160);
  EXPECT_EQ(container["resources"]["limits"], container["resources"]["requests"]);

  const json clients = Find(Render("/example"), "Deployment")["spec"]["template"]["spec"];
  for (const json& client : clients["containers"]) {
    const int uid = client["securityContext"]["runAsUser"];
    EXPECT_TRUE(absl::StrContains(config, absl::StrCat("allow { uid: ", uid, " "))) << uid;
  }
}

// podman with all that it keeps in a folder of its own.
class Podman {
 public:
  Podman() : folder_(TemporaryDirectory()) {
    // Left to itself it raises limits beyond what may be allowed here, and its default runtime
    // knows no machine with both versions of cgroups.
    rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    std::ofstream(folder_ + "/containers.conf")
        << "[containers]\ndefault_ulimits = [\"nofile=" << files.rlim_max << ":" << files.rlim_max
        << "\", \"nproc=4096:4096\"]\n[engine]\ncgroup_manager = \"cgroupfs\"\n"
        << "events_logger = \"file\"\nlock_type = \"file\"\nruntime = \"runc\"\n";
  }
  ~Podman() {
    Run("pod rm -af -t 0");
    Run("rm -af -t 0");
    Run("rmi -af");
    Shell("umount " + folder_ + "/root/overlay");  // podman leaves it mounted
    fs::remove_all(folder_);
  }

  const std::string& folder() const { return folder_; }
  std::string Command(const std::string& arguments) const {
    return absl::StrCat("env CONTAINERS_CONF=", folder_,
                        "/containers.conf DISABLE_HC_SYSTEMD=true podman --root ", folder_,
                        "/root --runroot ", folder_, "/run --tmpdir ", folder_, "/tmp ", arguments);
  }
  ShellResult Run(const std::string& arguments) const { return Shell(Command(arguments)); }

 private:
  const std::string folder_;
};

TEST(Kubernetes, PodmanPlaysTheDaemonsPodAndAClientAllocates) {
  if (!Engine::WhyNone().empty()) GTEST_SKIP() << "no image: " << Engine::WhyNone();
  const Podman podman;
  const std::string& folder = podman.folder();
  const std::string sockets = folder + "/sockets";  // the kubelet's, so root's
  Must(absl::StrCat("docker save spanpool:test spanpool-example:test | ",
                    podman.Command("load --quiet")));
  const ShellResult able =
      podman.Run("run --rm --network none --entrypoint true localhost/spanpool:test");
  if (!able.ok()) GTEST_SKIP() << "podman runs no container here: " << able;

  const json objects = Render("");
  json pod = Find(objects, "DaemonSet")["spec"]["template"];
  pod["apiVersion"] = "v1";
  pod["kind"] = "Pod";
  pod["metadata"]["name"] = "pod";
  // Left alone podman 4.3 removes a container that has done its work while it may still be ending.
  pod["metadata"]["annotations"]["io.podman.annotations.init.container.type"] = "always";
  for (const char* kind : {"initContainers", "containers"}) {
    for (json& container : pod["spec"][kind]) container["image"] = "localhost/spanpool:test";
  }
  for (json& volume : pod["spec"]["volumes"]) {
    if (volume.contains("hostPath")) volume["hostPath"]["path"] = sockets;
  }
  std::ofstream(folder + "/pod.json") << pod;
  std::ofstream(folder + "/config.json") << Find(objects, "ConfigMap");
  const ShellResult played = podman.Run(absl::StrCat("kube play --network none --configmap ",
                                                     folder, "/config.json ", folder, "/pod.json"));
  ASSERT_TRUE(played.ok()) << played;
  // What the startup probe does.
  const ShellResult healthy =
      Shell("for i in {1..60}; do " + podman.Command("exec pod-spanpoold spanpool health") +
            " && exit; sleep 1; done; exit 1");
  ASSERT_TRUE(healthy.ok()) << healthy << podman.Run("logs pod-spanpoold");

  // As the example's pods do: the directory is mounted read-only.
  const std::string actor = fs::canonical(Runfile("tests/support/actor_main")).string();
  Actor client(Process({"/bin/sh", "-c",
                        "exec " + podman.Command(absl::StrCat(
                                      "run -i --network none --read-only --cap-drop ALL --user "
                                      "10002 --memory 64m -v ",
                                      sockets, ":/run/spanpool:ro -v ", actor,
                                      ":/usr/bin/actor:ro --entrypoint actor "
                                      "localhost/spanpool-example:test"))}));
  client.Must("attach /run/spanpool");
  client.Must(absl::StrCat("allocate b ", 512 * kMiB));
  client.Must("fill b 3");
  client.Must("check b 3");
}

}  // namespace
}  // namespace spanpool::testing
