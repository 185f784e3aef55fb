#!/bin/sh
# Runs a Python test file; Debian has no `python` for Bazel's own rule.
exec python3 -B "$1"
