"""What ./dev bench --page makes of a page."""

import unittest

import page

REPORT = {
    "commit": "0123456789abcdef",
    "machine": {"cpu": "Z80", "cpus": 2, "kernel": "6.1.0-13-amd64"},
    "results": [
        {"suite": "s", "case": case, "system": system, "metric": metric, "value": value, "n": 9, "unit": unit}
        for case, system, metric, value, unit in [
            ("64", "spanpool", "ns", 12.345, "ns"), ("64", "other", "ns", 24.69, "ns"), ("64", "spanpool", "rpcs", 0, ""),
            ("4096", "spanpool", "ns", 1234.5, "ns"), ("big", "spanpool", "ns", 1, "ns")]],
    "absent": [{"suite": "s", "case": "4096", "system": "other", "why": "not installed"}],
}


class Page(unittest.TestCase):
    def test_places_of_suites_that_ran_are_filled_and_others_stay(self):
        before = "\n".join(["# A", "<!-- figures s ns other/spanpool cases=[0-9]* -->", "old", "<!-- end -->", "text",
                            "<!-- figures t ns -->", "stays", "<!-- end -->", ""])
        after = page.fill(before, REPORT, quick=True)
        self.assertEqual(after.split("\n"), [
            "# A", "<!-- figures s ns other/spanpool cases=[0-9]* -->", "",
            "| case | `spanpool`, ns | `other`, ns | `other` / `spanpool` |", "|---|---|---|---|",
            "| 64 | 12.3 | 24.7 | 2 |", "| 4096 | 1234 |  |  |", "",
            "`./dev bench s --quick`, medians of 9 rounds; commit 0123456789, Z80, 2 processors, Linux 6.1.0."
            " Absent: `other`: not installed.", "",
            "<!-- end -->", "text", "<!-- figures t ns -->", "stays", "<!-- end -->", ""])
        self.assertEqual(page.fill(after, REPORT, quick=True), after)

    def test_several_metrics_have_columns_of_their_own(self):
        after = page.fill("<!-- figures s ns,rpcs cases=64 -->\n<!-- end -->", REPORT, quick=False)
        self.assertIn("| case | `spanpool` `ns`, ns | `other` `ns`, ns | `spanpool` `rpcs` |\n", after)
        self.assertIn("| 64 | 12.3 | 24.7 | 0 |\n", after)
        self.assertIn("`./dev bench s`, medians", after)

    def test_a_place_without_an_end_is_refused(self):
        with self.assertRaises(ValueError):
            page.fill("<!-- figures s ns -->\ntext", REPORT, quick=False)


if __name__ == "__main__":
    unittest.main()
