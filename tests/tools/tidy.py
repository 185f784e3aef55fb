"""Runs clang-tidy on the C++ sources, several at once, and remembers the files that passed.

Unit tests are left out: they are two thirds of the sources, parsing GoogleTest is dear, and what
clang-tidy finds in them seldom matters.

A file is checked again when it, a header of ours that it includes, its generated headers, the checks
or clang-tidy itself change. What passed is remembered in ~/.cache/spanpool-lint, one empty file each.
"""

import concurrent.futures
import functools
import hashlib
import os
import re
import subprocess
import time

from sources import ROOT, Problem, read

FLAGS = [
    "-std=c++20", "-Wall", "-Wextra", "-Wthread-safety",
    # Not Clang's business: the compiler of the build is GCC, with other warnings and options.
    "-Wno-unknown-warning-option", "-Wno-unknown-attributes", "-Wno-unused-command-line-argument",
    "-I.", "-Iclient", "-isystem", "bazel-bin/proto", "-isystem", "bazel-bin",
]
SEARCH_PATH = ("", "client", "bazel-bin/proto")
INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]+"([^"]+)"', re.MULTILINE)
# What is generated for it, is by its own build.
STRANGERS = "tests/install/stranger_grpc/"
CACHE = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"),
                     "spanpool-lint")
FORGET_AFTER_S = 30 * 24 * 3600


@functools.lru_cache(maxsize=None)
def direct_includes(path):
    """(digest of the file, the files of ours that it includes)."""
    text = read(path)
    found = []
    for include in INCLUDE.findall(text):
        for place in SEARCH_PATH:
            candidate = os.path.join(place, include)
            if os.path.isfile(os.path.join(ROOT, candidate)):
                found.append(candidate)
                break
    return hashlib.sha256(text.encode()).hexdigest(), tuple(found)


def digest(path, tool):
    """Names all that the verdict on a file depends on."""
    seen, queue = set(), [path]
    while queue:
        file = queue.pop()
        if file not in seen:
            seen.add(file)
            queue.extend(direct_includes(file)[1])
    parts = [tool] + ["%s %s" % (file, direct_includes(file)[0]) for file in sorted(seen)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def run_tidy(path):
    result = subprocess.run(
        ["clang-tidy", "--quiet", path, "--"] + FLAGS, cwd=ROOT, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False, text=True)
    if result.returncode == 0:
        return None
    return result.stdout.replace(ROOT + "/", "").strip() or result.stderr.strip()


def check(files):
    sources = [path for path in files
               if path.endswith(".cc") and not path.endswith("_test.cc") and not path.startswith(STRANGERS)]
    version = subprocess.run(["clang-tidy", "--version"], stdout=subprocess.PIPE, check=True,
                             text=True).stdout
    tool = "\n".join([version, " ".join(FLAGS), read(".clang-tidy")])
    os.makedirs(CACHE, exist_ok=True)
    for entry in os.scandir(CACHE):
        if time.time() - entry.stat().st_mtime > FORGET_AFTER_S:
            os.unlink(entry.path)

    pending = []
    for path in sources:
        mark = os.path.join(CACHE, digest(path, tool))
        if os.path.exists(mark):
            os.utime(mark)
        else:
            pending.append((path, mark))
    # The largest first, so that no core waits for a late one.
    pending.sort(key=lambda item: -os.path.getsize(os.path.join(ROOT, item[0])))
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for (path, mark), complaint in zip(pending, pool.map(run_tidy, [p for p, _ in pending])):
            if complaint is None:
                open(mark, "w", encoding="utf-8").close()
            else:
                yield Problem(path, 0, "clang-tidy\n" + complaint)
