"""Puts the figures of a run into a page: ./dev bench [SUITE...] --page PAGE.

A page says what it wants between two comments; what stands there is replaced:

  <!-- figures SUITE METRIC[,METRIC...] [A/B...] [cases=GLOB] -->
  <!-- end -->

becomes a table with a row for each case and a column for each system that has the metric, medians, then the ratios
A / B of systems. Below it stand the command, the commit and the machine. Places for suites that were not run stay as
they are.
"""

import fnmatch
import re

BEGIN = re.compile(r"<!-- figures (\S+) (\S+)((?: \S+)*) -->$")
END = "<!-- end -->"


def show(value):
    """Three digits, without an exponent."""
    if value >= 100:
        return "%.0f" % value
    return "%.3g" % value


def ordered(items):
    return list(dict.fromkeys(items))


def table(report, suite, metrics, ratios, cases):
    """The lines of a table; empty if the report has nothing for it."""
    rows = [r for r in report["results"]
            if r["suite"] == suite and r["metric"] in metrics and fnmatch.fnmatch(r["case"], cases)]
    columns = ordered((r["system"], r["metric"]) for metric in metrics for r in rows if r["metric"] == metric)
    value = {(r["case"], r["system"], r["metric"]): r["value"] for r in rows}
    unit = {r["metric"]: r["unit"] for r in rows}
    heads = []
    for system, metric in columns:
        name = "`%s`" % system if len(metrics) == 1 else "`%s` `%s`" % (system, metric)
        heads.append("%s, %s" % (name, unit[metric]) if unit[metric] else name)
    heads += ["`%s` / `%s`" % tuple(ratio) for ratio in ratios]
    if not rows:
        return []
    lines = ["| case | %s |" % " | ".join(heads), "|---" * (len(heads) + 1) + "|"]
    for case in ordered(r["case"] for r in rows):
        cells = [value.get((case,) + column) for column in columns]
        for a, b in ratios:
            above, below = value.get((case, a, metrics[0])), value.get((case, b, metrics[0]))
            cells.append(above / below if above is not None and below else None)
        lines.append("| %s | %s |" % (case, " | ".join("" if cell is None else show(cell) for cell in cells)))
    return lines


def provenance(report, suite, command):
    machine = report["machine"]
    text = "`%s`, medians of %d rounds; commit %s, %s, %d processors, Linux %s." % (
        command, max(r["n"] for r in report["results"] if r["suite"] == suite), report["commit"][:10], machine["cpu"],
        machine["cpus"], machine["kernel"].split("-")[0])
    absent = ordered("`%s`: %s" % (a["system"], a["why"]) for a in report["absent"] if a["suite"] == suite)
    return text + (" Absent: %s." % "; ".join(absent) if absent else "")


def fill(text, report, quick):
    """The page's text with the report's figures in their places."""
    lines, inside, stale = [], False, []
    for line in text.split("\n"):
        begin = BEGIN.match(line)
        if begin:
            suite, metrics, rest = begin.group(1), begin.group(2).split(","), begin.group(3).split()
            cases = ([word[len("cases="):] for word in rest if word.startswith("cases=")] or ["*"])[0]
            ratios = [word.split("/") for word in rest if not word.startswith("cases=")]
            new = table(report, suite, metrics, ratios, cases)
            if new:
                command = "./dev bench %s%s" % (suite, " --quick" if quick else "")
                new = ["", *new, "", provenance(report, suite, command), ""]
            lines.append(line)
            inside, stale = True, []
        elif line == END and inside:
            lines += (new or stale) + [line]
            inside = False
        else:
            (stale if inside else lines).append(line)
    if inside:
        raise ValueError("a place for figures has no end")
    return "\n".join(lines)
