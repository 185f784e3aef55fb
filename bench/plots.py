"""Draws the plots of ./dev bench --plots DIR from what the suites reported."""

import os

import matplotlib

matplotlib.use("svg")
# The same figures give the same file: no dates, no random names; text stays text.
matplotlib.rcParams.update({"svg.hashsalt": "spanpool", "svg.fonttype": "none", "font.size": 9,
                            "axes.spines.top": False, "axes.spines.right": False})
import matplotlib.pyplot as plt  # noqa: E402

COLORS = {"spanpool": "#1b6ca8", "size_class": "#85b8dd", "linear": "#c0392b",
          "free_list": "#e08e0b", "jemalloc": "#7f8c8d", "tcmalloc": "#4d5656",
          "mimalloc": "#a3aaab", "glibc": "#c9cdce", "dpdk_mempool": "#27874b",
          "boost_interprocess": "#8e44ad", "grpc_bytes_field": "#c0392b", "grpc_floor": "#7f8c8d",
          "spanpool_send": "#5b9bd0", "spanpool_channel": "#9cc3e6", "spanpool_hugetlb": "#5b9bd0",
          "ring_floor": "#c9cdce", "protocol_floor": "#7f8c8d", "dpdk": "#27874b",
          "unix_socket_copy": "#c0392b", "memset_warm": "#4d5656", "memfd_first_touch": "#c9cdce",
          "memfd_populate_fill": "#7f8c8d"}
NAMES = {"spanpool": "spanpool, its daemon included", "size_class": "spanpool's heap alone",
         "linear": "linear", "free_list": "linked list", "jemalloc": "jemalloc",
         "tcmalloc": "tcmalloc", "mimalloc": "mimalloc", "glibc": "glibc"}
# The trace whose course is drawn: a server whose values change in length is where it shows.
COURSE = "redis"


def bars(axes, report, suite, metric, title, leave_out=(), names=None):
    rows = [r for r in report["results"] if r["suite"] == suite
            and r["metric"] == metric and r["case"] not in leave_out]
    cases = list(dict.fromkeys(r["case"] for r in rows))
    systems = [s for s in COLORS if any(r["system"] == s for r in rows)]
    width = 0.8 / max(1, len(systems))
    for i, system in enumerate(systems):
        values = {r["case"]: r["value"] for r in rows if r["system"] == system}
        at = [x + (i - (len(systems) - 1) / 2) * width for x in range(len(cases))]
        axes.bar(at, [values.get(case, 0) for case in cases], width, color=COLORS[system],
                 label=(names or {}).get(system, system))
    axes.set_yscale("log")
    axes.set_xticks(range(len(cases)), cases)
    axes.set_title(title, loc="left")
    axes.yaxis.set_major_formatter("{x:g}")


def course(axes, holes_axes, series):
    """Memory over the life of one trace, and what becomes of the linked list's free memory."""
    mib = 1 << 20
    any_system = next(iter(series.values()))
    events = [point[0] / 1000 for point in any_system]
    live = [point[1] / mib for point in any_system]
    axes.fill_between(events, live, color="#dddddd", label="in use by the program")
    for system, color in COLORS.items():
        if system in series:
            axes.plot([p[0] / 1000 for p in series[system]], [p[2] / mib for p in series[system]],
                      color=color, label=NAMES[system], linewidth=1.4)
    axes.set_ylim(0, 3.2 * max(live))
    axes.set_xlim(0, events[-1])
    axes.set_ylabel("MiB taken from the system")
    axes.set_title("%s: memory over its life" % COURSE, loc="left")
    axes.legend(frameon=False, fontsize=8)
    if "free_list" in series:
        holes_axes.plot([p[0] / 1000 for p in series["free_list"]],
                        [p[3] for p in series["free_list"]], color=COLORS["free_list"])
    holes_axes.set_xlim(0, events[-1])
    holes_axes.set_ylim(0)
    holes_axes.set_xlabel("thousand calls of malloc and free")
    holes_axes.set_title("%s: holes that the linked list walks over" % COURSE, loc="left")


def draw_fragmentation(report, series, path):
    figure, axes = plt.subplots(2, 2, figsize=(11, 7), constrained_layout=True)
    course(axes[0][0], axes[1][0], series[COURSE])
    bars(axes[0][1], report, "fragmentation", "peak_over_live",
         "most memory taken / most bytes in use (log; 1 = no waste)", names=NAMES)
    # xz makes 300 calls and touches 100 MiB: that is the kernel's time.
    bars(axes[1][1], report, "fragmentation", "ns_per_op", "nanoseconds a call, with touching its pages (log)",
         leave_out=("xz",), names=NAMES)
    axes[0][1].axhline(1, color="black", linewidth=0.6)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def figures(report, suite, metric, prefix=""):
    """{system: [(number at the end of the case's name, value)]}"""
    found = {}
    for r in report["results"]:
        if r["suite"] == suite and r["metric"] == metric and r["case"].startswith(prefix):
            found.setdefault(r["system"], []).append((int(r["case"][len(prefix):]), r["value"]))
    return found


def draw_by_size(curves, title, path):
    """Lines over the size of a block, both axes logarithmic."""
    figure, axes = plt.subplots(figsize=(7, 3.4), constrained_layout=True)
    for system, points in curves.items():
        axes.plot(*zip(*sorted(points)), marker="o", markersize=3, linewidth=2 if system == "spanpool" else 1.2,
                  color=COLORS.get(system), label=system)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    sizes = sorted({size for points in curves.values() for size, _ in points})
    axes.set_xticks(sizes, ["%dM" % (size >> 20) if size >= 1 << 20 else
                            "%dK" % (size >> 10) if size >= 1024 else "%d" % size for size in sizes])
    axes.set_xlabel("bytes")
    axes.minorticks_off()
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_title(title, loc="left")
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def draw_bars(report, suite, metric, path, title):
    figure, axes = plt.subplots(figsize=(9, 3.4), constrained_layout=True)
    bars(axes, report, suite, metric, title, leave_out=("share_release",))
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def draw_latencies(report, suite, path, title):
    """For each case, how long the luckier 50, 90, 99 and 100 % of calls took at most."""
    parts = ["p50", "p90", "p99", "max"]
    rows = [r for r in report["results"] if r["suite"] == suite and r["metric"] in parts]
    cases = list(dict.fromkeys(r["case"] for r in rows))
    figure, panels = plt.subplots(1, len(cases), figsize=(9, 3), constrained_layout=True, sharey=True, squeeze=False)
    for axes, case in zip(panels[0], cases):
        for system in dict.fromkeys(r["system"] for r in rows if r["case"] == case):
            value = {r["metric"]: r["value"] for r in rows if r["case"] == case and r["system"] == system}
            shown = [part for part in parts if part in value]
            axes.plot(shown, [value[part] for part in shown], marker="o", markersize=4, color=COLORS.get(system),
                      label=system)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_title("%s: %s" % (case, title), loc="left")
    panels[0][0].legend(frameon=False, fontsize=8)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


# Suite, metric, file, title.
BY_CASE = [
    ("threads", "ns_per_pair", "threads.svg", "two threads: nanoseconds a pair (log)"),
    ("growth", "gb_per_s", "growth.svg", "filling fresh blocks, GB/s (log)"),
    ("handoff", "ns_per_message", "handoff.svg", "nanoseconds from one process to another (log)"),
]
# Suite, file, title.
LATENCIES = [("refill", "refill.svg", "microseconds (log)")]
# Suite, metric, what the cases' names begin with, file, title.
BY_SIZE = [
    ("payload", "gb_per_s", "", "payload.svg", "GB/s of a gRPC call's payload, by its size (log)"),
    ("alloc", "ns_per_pair", "pair_", "alloc.svg", "nanoseconds to allocate and free a block, by its size (log)"),
]


def draw(report, series, folder):
    """Returns the paths of the plots written."""
    paths = []
    for suite, metric, prefix, name, title in BY_SIZE:
        curves = figures(report, suite, metric, prefix)
        if curves:
            paths.append(os.path.join(folder, name))
            draw_by_size(curves, title, paths[-1])
    has = {(r["suite"], r["metric"]) for r in report["results"]}
    for suite, metric, name, title in BY_CASE:
        if (suite, metric) in has:
            paths.append(os.path.join(folder, name))
            draw_bars(report, suite, metric, paths[-1], title)
    for suite, name, title in LATENCIES:
        if (suite, "p50") in has:
            paths.append(os.path.join(folder, name))
            draw_latencies(report, suite, paths[-1], title)
    if series and COURSE in series:
        paths.append(os.path.join(folder, "fragmentation.svg"))
        draw_fragmentation(report, series, paths[-1])
    return paths
