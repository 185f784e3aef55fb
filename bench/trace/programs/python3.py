"""Parses the standard library, keeps an index of its names, and drops modules as it goes."""
import ast
import collections
import glob

index = collections.defaultdict(set)
recent = collections.deque(maxlen=4)
for path in sorted(glob.glob("/usr/lib/python3*/*.py"))[:120]:
    with open(path, encoding="utf-8") as source:
        tree = ast.parse(source.read())
    recent.append(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            index[node.id].add((path, node.lineno))
    if len(index) > 3000:
        for key in sorted(index)[::3]:
            del index[key]
