"""The repository's files, and the problems found in them; shared by the checks of ./dev lint."""

import os
import subprocess
from dataclasses import dataclass

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


@dataclass(frozen=True)
class Problem:
    path: str
    line: int  # 0 when the whole file is meant
    text: str

    def __str__(self):
        place = "%s:%d" % (self.path, self.line) if self.line else self.path
        return "%s: %s" % (place, self.text)


def run(arguments):
    """Runs a command in the repository and returns its standard output; raises on failure."""
    return subprocess.run(arguments, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          check=True, text=True).stdout


def repository_files():
    """Every file that is or could be committed, as paths from the root."""
    listing = run(["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others",
                   "--exclude-standard"])
    return sorted(path for path in set(listing.split("\0"))
                  if path and os.path.isfile(os.path.join(ROOT, path)))


def read(path):
    with open(os.path.join(ROOT, path), encoding="utf-8", errors="replace") as file:
        return file.read()
