"""What ./dev lint finds in a document."""

import unittest
from unittest import mock

import documents

PAGE = """# The title, with `code`
## Twice
## Twice
[a](other.md) [b](#the-title-with-code) [c](#twice-1) [d](https://example.org/x.md)
[e](missing.md) [f](other.md#nothing) [g](#nowhere) `docs/other.md` `docs/missing.md` `a/b`
```sh
./dev test heap   # comment
sudo ./dev nonsense | tee log && ./dev test nothing
SPANPOOL_POOL=a spanpool --json status --all
spanpool --target /run/x frobnicate
docs/missing/run
cat >x <<'END'
spanpool nonsense
END
spanpool gibberish
```
```cpp
./dev nonsense
```
"""
FILES = {"docs/page.md": PAGE, "docs/other.md": "# Other\n"}
HELP = {
    (): "Options:\n  --target TEXT   where\n  --json   machine\nCommands:\n  status   what there is\n",
    ("status",): "Options:\n  --watch   again and again\n",
}


def is_there(path):
    return path in FILES or path == "docs" or path == documents.BINARIES["spanpool"]


@mock.patch.object(documents, "exists", is_there)
@mock.patch.object(documents, "read", FILES.get)
@mock.patch.object(documents, "top_folders", lambda: {"docs"})
@mock.patch.object(documents, "dev_commands", lambda: {"test"})
@mock.patch.object(documents, "test_labels", lambda: ["//allocator:heap_test"])
@mock.patch.object(documents, "help_of", lambda _, *arguments: HELP.get(arguments, ""))
class Documents(unittest.TestCase):
    def test_every_broken_link_path_and_command_is_found_and_nothing_else(self):
        documents.anchors.cache_clear()
        found = [(problem.line, problem.text) for problem in documents.check(["docs/page.md"])]
        self.assertEqual(found, [
            (5, "link to missing.md, which does not exist"),
            (5, "link to other.md#nothing, but docs/other.md has no such heading"),
            (5, "link to #nowhere, but docs/page.md has no such heading"),
            (5, "`docs/missing.md` does not exist"),
            (8, "./dev has no command nonsense"),
            (8, "./dev test nothing matches no test"),
            (9, "spanpool status has no flag --all"),
            (10, "spanpool has no command frobnicate"),
            (11, "docs/missing/run does not exist"),
            (15, "spanpool has no command gibberish"),
        ])


if __name__ == "__main__":
    unittest.main()
