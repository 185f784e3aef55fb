"""./dev lint and ./dev format: every check of the sources that is not a test.

usage: lint.py [--format]

Prints `path:line: problem` for each, and a line for each check with the time it took. Exits 1 if there
was a problem. With --format, rewrites what clang-format would change instead, and checks nothing.
"""

import ast
import os
import re
import subprocess
import sys
import time

import documents
import layering
import tidy
from sources import ROOT, Problem, read, repository_files


def cxx(files):
    return [path for path in files if path.endswith((".h", ".cc"))]


def check_format(files):
    if not cxx(files):
        return
    result = subprocess.run(["clang-format", "--dry-run", "-Werror"] + cxx(files), cwd=ROOT,
                            stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False,
                            text=True)
    places = {}
    for line in result.stderr.split("\n"):
        parts = line.split(":")
        if len(parts) > 3 and parts[1].isdigit():
            places.setdefault(parts[0], int(parts[1]))
    for path, line in places.items():
        yield Problem(path, line, "not formatted; ./dev format does it")
    if result.returncode != 0 and not places:
        yield Problem(".clang-format", 0, result.stderr.strip())


def check_shell(files):
    scripts = [path for path in files
               if path.endswith(".sh") or read(path)[:64].startswith(("#!/bin/sh", "#!/bin/bash",
                                                                      "#!/usr/bin/env bash"))]
    if not scripts:
        return
    result = subprocess.run(["shellcheck", "--format=gcc"] + scripts, cwd=ROOT,
                            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=False,
                            text=True)
    for line in result.stdout.splitlines():
        path, number, _, text = line.split(":", 3)
        yield Problem(path, int(number), text.strip())


def check_python(files):
    for path in files:
        if path.endswith(".py"):
            try:
                ast.parse(read(path), path)
            except SyntaxError as error:
                yield Problem(path, error.lineno or 0, error.msg)


def check_packages(_):
    """Every library that the build asks for is installed by ./dev build, or by ./dev bench."""
    libraries = "third_party/system_libs.bzl"
    group, build = None, set()
    for line in read("deploy/packages.txt").splitlines():
        if line.startswith("# ["):
            group = line[3:].split("]")[0]
        elif line and not line.startswith("#") and group in ("build", "bench"):
            build.add(line)
    for number, line in enumerate(read(libraries).splitlines(), 1):
        for package in re.findall(r'"([\w.+-]+-dev)"', line):
            if package not in build:
                yield Problem(libraries, number, "%s is missing from the [build] and [bench] groups of "
                              "deploy/packages.txt" % package)


CHECKS = [
    ("format", check_format),
    ("shell scripts", check_shell),
    ("Python", check_python),
    ("packages", check_packages),
    ("layering", layering.check),
    ("documents", documents.check),
    ("clang-tidy", tidy.check),
]


def main():
    files = repository_files()
    if sys.argv[1:] == ["--format"]:
        subprocess.run(["clang-format", "-i"] + cxx(files), cwd=ROOT, check=True)
        return 0
    os.chdir(ROOT)
    problems = 0
    for name, check in CHECKS:
        start, before = time.monotonic(), problems
        for problem in check(files):
            print(problem, flush=True)
            problems += 1
        verdict = "ok" if problems == before else "%d problems" % (problems - before)
        print("%-14s %-12s %6.1f s" % (name, verdict, time.monotonic() - start), flush=True)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
