"""Tests in Python; Debian has no `python` for Bazel's own rule."""

def python_test(name, data):
    """The tests in NAME.py, which are about the files `data` beside it."""
    native.sh_test(
        name = name,
        size = "small",
        srcs = ["//tests/tools:python_test.sh"],
        args = ["$(location %s.py)" % name],
        data = [name + ".py"] + data,
    )
