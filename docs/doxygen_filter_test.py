"""What Doxygen is given of a header."""

import unittest

import doxygen_filter

HEADER = """\
// The file.

// First & last:
//   A  <aligned>
class X {
  int a;  // of @someone
};  // class X
#endif  // X_H_"""

FILTERED = """\
/// @file
/// <pre>The file.</pre>

/// <pre>First &amp; last:
///   A  &lt;aligned&gt;</pre>
class X {
  int a;  ///< of \\@someone
};  // class X
#endif  // X_H_"""


class Filter(unittest.TestCase):
    def test_comments_become_doxygens_and_nothing_else_changes(self):
        self.assertEqual("\n".join(doxygen_filter.filtered(HEADER.split("\n"))), FILTERED)


if __name__ == "__main__":
    unittest.main()
