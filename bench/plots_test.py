"""What ./dev bench --plots draws: a file for each thing there are figures of, and no other."""

import os
import tempfile
import unittest

import plots


def figure(suite, case, system, metric, value):
    return {"suite": suite, "case": case, "system": system, "metric": metric, "value": value}


class Plots(unittest.TestCase):
    def draw(self, results, series=None):
        """{name of the file: its text}"""
        with tempfile.TemporaryDirectory() as folder:
            drawn = {}
            for path in plots.draw({"results": results}, series, folder):
                with open(path, encoding="utf-8") as file:
                    drawn[os.path.basename(path)] = file.read()
            return drawn

    def test_nothing_is_drawn_of_nothing(self):
        self.assertEqual(self.draw([]), {})

    def test_lines_over_the_size(self):
        drawn = self.draw([figure("alloc", "pair_%d" % size, system, "ns_per_pair", 4.0)
                           for size in (64, 1024) for system in ("spanpool", "glibc")])
        self.assertEqual(list(drawn), ["alloc.svg"])
        for text in ("64", "1K", "spanpool", "glibc"):
            self.assertIn(">%s<" % text, drawn["alloc.svg"])

    def test_bars_by_case(self):
        drawn = self.draw([figure("handoff", case, system, "ns_per_message", 100.0)
                           for case in ("64", "share_release") for system in ("spanpool", "dpdk")])
        self.assertEqual(list(drawn), ["handoff.svg"])
        self.assertIn(">dpdk<", drawn["handoff.svg"])
        self.assertNotIn("share_release", drawn["handoff.svg"])

    def test_latencies(self):
        drawn = self.draw([figure("refill", case, "grpc_floor", metric, 100.0)
                           for case in ("stream", "after_idle") for metric in ("p50", "p99", "max")])
        self.assertEqual(list(drawn), ["refill.svg"])
        for text in ("p50", "p99", "max", "grpc_floor"):
            self.assertIn(">%s<" % text, drawn["refill.svg"])
        self.assertNotIn(">p90<", drawn["refill.svg"])

    def test_the_same_figures_give_the_same_file(self):
        results = [figure("growth", "reserved_65536", "spanpool", "gb_per_s", 3.0)]
        self.assertEqual(self.draw(results), self.draw(results))


if __name__ == "__main__":
    unittest.main()
