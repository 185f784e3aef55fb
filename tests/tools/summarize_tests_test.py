"""What ./dev test counts: the numbers that decide whether a change is good."""

import contextlib
import io
import json
import os
import tempfile
import unittest
from unittest import mock

import summarize_tests


class Run:
    """A made-up `bazel test`: its events and the files that they name."""

    def __init__(self, test):
        self.folder = tempfile.TemporaryDirectory()
        test.addCleanup(self.folder.cleanup)
        self.events = []

    def add(self, label, status, xml=None, log="", attempt=1, shard=1):
        outputs = []
        for name, text in (("test.xml", xml), ("test.log", log)):
            if text is not None:
                path = os.path.join(self.folder.name, "%d.%s" % (len(self.events), name))
                with open(path, "w", encoding="utf-8") as file:
                    file.write(text)
                outputs.append({"name": name, "uri": "file://" + path})
        self.events.append({
            "id": {"testResult": {"label": label, "run": 1, "shard": shard, "attempt": attempt}},
            "testResult": {"status": status, "testActionOutput": outputs,
                           "testAttemptDurationMillis": "1500"}})

    def summarize(self, labels, status=0, tail=""):
        """Returns (exit code, lines printed)."""
        path = os.path.join(self.folder.name, "events")
        with open(path, "w", encoding="utf-8") as file:
            file.write("\n".join(map(json.dumps, self.events)) + tail)
        printed = io.StringIO()
        with mock.patch("sys.argv", ["", path, str(status)]), \
                mock.patch("sys.stdin", io.StringIO("\n".join(labels))), \
                contextlib.redirect_stdout(printed):
            code = summarize_tests.main()
        return code, printed.getvalue().splitlines()


def suite(*cases):
    return "<testsuites><testsuite>%s</testsuite></testsuites>" % "".join(cases)


PASS = '<testcase classname="Heap" name="Grows" status="run" result="completed"/>'
FAIL = '<testcase classname="Heap" name="Shrinks" status="run"><failure message="x"/></testcase>'
SKIP = '<testcase classname="Heap" name="Huge" status="run" result="skipped"><skipped/></testcase>'
DISABLED = '<testcase classname="Heap" name="DISABLED_Old" status="notrun" result="suppressed"/>'


class SummarizeTests(unittest.TestCase):
    def test_cases_are_counted_one_by_one(self):
        run = Run(self)
        run.add("//a:x", "PASSED", suite(PASS, PASS, SKIP, DISABLED))
        run.add("//a:y", "PASSED", suite(PASS))
        code, lines = run.summarize(["//a:x", "//a:y"])
        self.assertEqual((code, lines[-1]), (0, "3 passed, 0 failed, 2 skipped"))

    def test_a_failed_case_is_named_and_its_output_shown(self):
        run = Run(self)
        run.add("//a:x", "FAILED", suite(PASS, FAIL), log="expected 1, got 2\n")
        code, lines = run.summarize(["//a:x"], status=3)
        self.assertEqual((code, lines[-1]), (1, "1 passed, 1 failed"))
        self.assertIn("failed: Heap.Shrinks in //a:x", lines)
        self.assertIn("expected 1, got 2", lines)

    def test_a_crash_after_the_last_case_is_a_failure(self):
        run = Run(self)
        run.add("//a:x", "FAILED", suite(PASS, PASS))
        self.assertEqual(run.summarize(["//a:x"], 3)[1][-1], "2 passed, 1 failed")

    def test_a_timeout_without_a_report_is_a_failure(self):
        run = Run(self)
        run.add("//a:x", "TIMEOUT", xml=None)
        code, lines = run.summarize(["//a:x"], 3)
        self.assertEqual((code, lines[-1]), (1, "0 passed, 1 failed"))
        self.assertIn("timeout", "\n".join(lines))

    def test_a_half_written_report_does_not_hide_the_result(self):
        run = Run(self)
        run.add("//a:x", "FAILED", "<testsuites><testsuite>" + PASS)
        run.add("//a:y", "PASSED", "<testsuites>")
        self.assertEqual(run.summarize(["//a:x", "//a:y"], 3)[1][-1], "1 passed, 1 failed")

    def test_a_test_that_was_not_built_is_a_failure(self):
        run = Run(self)
        run.add("//a:x", "PASSED", suite(PASS))
        code, lines = run.summarize(["//a:x", "//a:y"], status=1)
        self.assertEqual((code, lines[-1]), (1, "1 passed, 1 failed"))

    def test_a_broken_build_of_something_else_is_a_failure(self):
        run = Run(self)
        run.add("//a:x", "PASSED", suite(PASS))
        code, lines = run.summarize(["//a:x"], status=1)
        self.assertEqual((code, lines[-1]), (1, "1 passed, 1 failed"))

    def test_the_last_attempt_counts_and_shards_add_up(self):
        run = Run(self)
        run.add("//a:x", "FAILED", suite(FAIL), attempt=1)
        run.add("//a:x", "PASSED", suite(PASS), attempt=2)
        run.add("//a:x", "PASSED", suite(PASS, PASS), shard=2)
        self.assertEqual(run.summarize(["//a:x"])[1][-1], "3 passed, 0 failed")

    def test_an_interrupted_run_is_still_counted(self):
        run = Run(self)
        run.add("//a:x", "PASSED", suite(PASS))
        code, lines = run.summarize(["//a:x", "//a:y"], 8, tail='\n{"id": {"testRes')
        self.assertEqual((code, lines[-1]), (1, "1 passed, 1 failed"))


if __name__ == "__main__":
    unittest.main()
