"""Counts the test cases of one `bazel test` run; called by ./dev test.

usage: summarize_tests.py EVENTS STATUS <LABELS
  EVENTS  what --build_event_json_file wrote
  STATUS  Bazel's exit status
  LABELS  the tests that were asked for, one a line

Prints the output of failed targets, a line per target, the names of failed cases, and at last `N passed, N failed` with
`, N skipped` if some were. GoogleTest's cases count one by one, any other test counts as one case. A
target that was not built, crashed or timed out counts as at least one failure. Exits 0 if none failed.
"""

import json
import re
import sys
import urllib.parse
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field

LOG_LINES = 300  # of a failed target; the rest is in its file
NOISE = re.compile(r"^\d+\.\d+: src/main/tools/|^exec \$\{PAGER")  # Bazel's, about its sandbox


@dataclass
class Tally:
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    failures: list = field(default_factory=list)
    seconds: float = 0.0
    notes: set = field(default_factory=set)
    logs: list = field(default_factory=list)

    def add_cases(self, xml_path):
        """Counts the <testcase> elements of a test.xml; an unreadable file counts as no case."""
        try:
            cases = list(ElementTree.parse(xml_path).iter("testcase"))
        except (OSError, ElementTree.ParseError):
            return
        for case in cases:
            if case.find("failure") is not None or case.find("error") is not None:
                self.failed += 1
                # Bazel writes the test.xml of a test that wrote none; its only case is the target.
                if case.get("classname"):
                    self.failures.append("%s.%s" % (case.get("classname"), case.get("name")))
            elif case.find("skipped") is not None or case.get("status") == "notrun":
                self.skipped += 1
            else:
                self.passed += 1

    def add_result(self, result):
        """Counts one run of a target: the testResult of a build event."""
        before = (self.passed, self.failed, self.skipped)
        status = result.get("status", "NO_STATUS")
        for output in result.get("testActionOutput", []):
            path = urllib.parse.unquote(urllib.parse.urlparse(output["uri"]).path)
            if output.get("name") == "test.xml":
                self.add_cases(path)
            elif output.get("name") == "test.log" and status != "PASSED":
                self.logs.append(path)
        if status == "PASSED":
            if (self.passed, self.failed, self.skipped) == before:
                self.passed += 1
        elif self.failed == before[1]:
            self.failed += 1
        if status not in ("PASSED", "FAILED"):
            self.notes.add(status.lower().replace("_", " "))
        if result.get("cachedLocally") or result.get("executionInfo", {}).get("cachedRemotely"):
            self.notes.add("cached")
        self.seconds += int(result.get("testAttemptDurationMillis", 0)) / 1000


def print_log(label, path):
    try:
        with open(path, encoding="utf-8", errors="replace") as log:
            lines = [line.rstrip("\n") for line in log if not NOISE.match(line)]
    except OSError as error:
        lines = [str(error)]
    print("==== output of %s" % label)
    if len(lines) > LOG_LINES:
        print("(the last %d lines; all of it is in %s)" % (LOG_LINES, path))
    print("\n".join(lines[-LOG_LINES:]))
    print("==== end of the output of %s\n" % label)


def last_attempts(events_path):
    """Yields (label, testResult) of the last attempt of every run and shard."""
    results = {}
    with open(events_path, encoding="utf-8", errors="replace") as events:
        for line in events:
            try:
                event = json.loads(line)
            except json.JSONDecodeError:
                continue  # an interrupted run ends in half a line
            key = event.get("id", {}).get("testResult")
            if key and "testResult" in event:
                results[key["label"], key.get("run"), key.get("shard")] = event["testResult"]
    for (label, _, _), result in results.items():
        yield label, result


def main():
    events_path, status = sys.argv[1], int(sys.argv[2])
    tallies = {label: Tally() for label in sys.stdin.read().split()}
    reported = set()
    for label, result in last_attempts(events_path):
        tallies.setdefault(label, Tally()).add_result(result)
        reported.add(label)
    for label in tallies.keys() - reported:
        tallies[label].failed = 1
        tallies[label].notes.add("not run: the build failed")

    for label, tally in sorted(tallies.items()):
        for path in tally.logs:
            print_log(label, path)
    width = max(map(len, tallies), default=0)
    for label, tally in sorted(tallies.items()):
        verdict = "FAILED" if tally.failed else "ok"
        notes = "  (%s)" % ", ".join(sorted(tally.notes)) if tally.notes else ""
        count = tally.passed + tally.failed + tally.skipped
        print("%-6s  %-*s  %5d case%s  %6.1f s%s" %
              (verdict, width, label, count, " " if count == 1 else "s", tally.seconds, notes))
    for label, tally in sorted(tallies.items()):
        for failure in tally.failures:
            print("failed: %s in %s" % (failure, label))

    passed, failed, skipped = (
        sum(getattr(tally, name) for tally in tallies.values())
        for name in ("passed", "failed", "skipped"))
    if failed == 0 and status != 0:
        failed = 1
        print("failed: the build (Bazel's exit status is %d)" % status)
    print("%d passed, %d failed%s" % (passed, failed, ", %d skipped" % skipped if skipped else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
