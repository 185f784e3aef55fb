"""Turns the comments of a header into Doxygen's: `./dev docs`.

usage: doxygen_filter.py HEADER > FILTERED

A block of // lines becomes one of ///, its text set verbatim, so that lists of errors keep their columns.
A comment behind code becomes ///<.
"""

import html
import re
import sys

BLOCK = re.compile(r"^(\s*)//(?: (.*))?$")
BEHIND = re.compile(r"^(\s*\S.*?)\s+// (.*)$")


def verbatim(text):
    return html.escape(text, quote=False).replace("@", "\\@")


def filtered(lines):
    """Yields the lines of the filtered header."""
    inside = False
    for number, line in enumerate(lines):
        match = BLOCK.match(line)
        if match is None:
            inside = False
            behind = BEHIND.match(line)
            # Behind a brace or a directive it describes the code, not a member.
            if behind and behind.group(1).endswith((";", ",")) and "}" not in line:
                line = "%s  ///< %s" % (behind.group(1), verbatim(behind.group(2)))
            yield line
            continue
        indent, text = match.group(1), verbatim(match.group(2) or "")
        more = number + 1 < len(lines) and BLOCK.match(lines[number + 1]) is not None
        first, last = ("" if inside else "<pre>"), ("" if more else "</pre>")
        if not inside and number == 0:
            first = "@file\n" + indent + "/// <pre>"
        yield "%s/// %s%s%s" % (indent, first, text, last)
        inside = more


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as header:
        print("\n".join(filtered(header.read().split("\n"))))
