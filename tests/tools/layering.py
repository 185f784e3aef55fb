"""Checks that the arrows between folders, and the order of layers inside one, run one way.

1. Folders: a file includes only headers of the folders that ARROWS gives its own folder.
2. Public headers (client/spanpool/) include only public headers and client/ ones.
3. Layers: inside a package a library or binary depends only on targets above it in its BUILD file, which
   is therefore the reading order. Only the package's face, what others depend on, may stand first.
4. Direct dependencies: a target lists every target of ours whose header it includes, and a library or
   binary no other. Who lists a package's face may also include the headers of what the face lists.
"""

import collections
import re
import xml.etree.ElementTree as ElementTree

from sources import Problem, read, run

ARROWS = {
    "allocator": {"allocator"},
    "proto": {"proto", "allocator"},
    "client": {"client", "allocator", "proto"},
    "server": {"server", "allocator", "proto"},
    "cli": {"cli", "client", "allocator", "proto"},
    "bench": {"bench", "client", "allocator", "proto", "tests"},  # tests/support, by visibility
    "tests": {"tests", "client", "allocator", "proto"},
    "examples": {"examples", "client", "allocator", "proto"},
}
ORDERED = {"allocator", "client", "server", "proto"}
# Of what is generated; deploy/install/install.sh puts it beside the headers.
INSTALLED = {"spanpool/v1/payload.pb.h"}
INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]+"([^"]+)"', re.MULTILINE)


def folder_of(include):
    """The folder that an include path leads to."""
    first = include.split("/")[0]
    if first == "spanpool":
        return "proto" if include.endswith(".pb.h") else "client"
    return first


def includes(path):
    """Yields (line, include path) of the quoted includes of a file."""
    text = read(path)
    for match in INCLUDE.finditer(text):
        yield text.count("\n", 0, match.start()) + 1, match.group(1)


def check_arrows(files):
    for path in files:
        folder = path.split("/")[0]
        if not path.endswith((".h", ".cc")) or folder not in ARROWS:
            continue
        for line, include in includes(path):
            target = folder_of(include)
            if "/" not in include:
                yield Problem(path, line, '"%s": an include path starts at the workspace root; '
                              'system headers stand in <>' % include)
            elif target not in ARROWS:
                continue  # Abseil and other libraries of the system
            elif target not in ARROWS[folder]:
                yield Problem(path, line, '"%s": %s/ may include only %s' % (
                    include, folder, ", ".join(sorted(ARROWS[folder]))))
            elif path.startswith("client/spanpool/") and target != "client" and include not in INSTALLED:
                yield Problem(path, line, '"%s": a public header includes only spanpool/ and '
                              'client/ headers, for no others are installed' % include)


class Target:
    def __init__(self, rule):
        self.label = rule.get("name")
        self.kind = rule.get("class")
        # "/abs/path/allocator/BUILD:12:11"
        self.line = int(rule.get("location").rsplit(":", 2)[1])
        self.package = self.label[2:].split(":")[0]
        self.lists = {
            part.get("name"): [label.get("value") for label in part.findall("label")]
            for part in rule.findall("list")}

    def files(self, attribute):
        """The files of `srcs` or `hdrs` as paths from the root."""
        return [label[2:].replace(":", "/").lstrip("/") for label in self.lists.get(attribute, [])
                if label.startswith("//")]

    @property
    def deps(self):
        return self.lists.get("deps", [])

    @property
    def build_file(self):
        return self.package + "/BUILD" if self.package else "BUILD"


def load_targets():
    listing = run(["bazel", "query", "--output=xml", 'kind("cc_.* rule", //...)'])
    rules = ElementTree.fromstring(listing).iter("rule")
    return {target.label: target for target in map(Target, rules)}


def faces(targets):
    """The first target of each package."""
    first = {}
    for target in targets.values():
        if target.package not in first or target.line < first[target.package].line:
            first[target.package] = target
    return {target.label for target in first.values()}


def check_order(targets):
    for target in targets.values():
        if target.package.split("/")[0] not in ORDERED or target.kind == "cc_test":
            continue
        if target.label in faces(targets):
            continue
        for dep in target.deps:
            other = targets.get(dep)
            if other and other.package == target.package and other.line > target.line:
                yield Problem(target.build_file, target.line, "%s uses %s, which stands below it: a "
                              "layer uses only layers before it" % (target.label, dep))


def include_name(header):
    """How a header is included: public and generated ones are named from their own folder."""
    for prefix in ("client/spanpool/", "proto/spanpool/"):
        if header.startswith(prefix):
            return header[len(prefix) - len("spanpool/"):]
    return header


def check_direct_deps(targets, files):
    files = set(files)
    owners = collections.defaultdict(set)
    for target in targets.values():
        for header in target.files("hdrs"):
            owners[include_name(header)].add(target.label)
    for label in faces(targets):
        for dep in targets[label].deps:
            for header in targets[dep].files("hdrs") if dep in targets else []:
                owners[include_name(header)].add(label)
    for target in targets.values():
        used = set()
        for path in target.files("srcs") + target.files("hdrs"):
            if path not in files or not path.endswith((".h", ".cc")):
                continue
            for line, include in includes(path):
                providers = owners.get(include, set())
                used |= providers
                if providers and not providers & ({target.label} | set(target.deps)):
                    yield Problem(path, line, '"%s": %s must list %s among its deps' % (
                        include, target.label, " or ".join(sorted(providers))))
        for dep in target.deps if target.kind != "cc_test" else []:
            other = targets.get(dep)
            if other and other.lists.get("hdrs") and dep not in used and any(
                    path in files for path in target.files("srcs") + target.files("hdrs")):
                yield Problem(target.build_file, target.line,
                              "%s includes no header of %s; drop the dep" % (target.label, dep))


def check(files):
    targets = load_targets()
    yield from check_arrows(files)
    yield from check_order(targets)
    yield from check_direct_deps(targets, files)
