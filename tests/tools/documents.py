"""Checks that what the documents and comments point at exists.

1. Links of Markdown files: the file is there, and so is the heading that an #anchor names.
2. Paths in `backquotes` that start with a folder of ours, and *.md files that sources cite.
3. Commands in ```sh blocks: ./dev commands and test patterns, Bazel labels, scripts of the repository, and the
   commands and flags of spanpool and spanpoold, which are asked for their --help.
"""

import functools
import os
import re
import shlex
import subprocess

from sources import ROOT, Problem, read, run

FENCE = re.compile(r"^(\s*)(```+|~~~+)\s*(\w*)")
LINK = re.compile(r"!?\[(?:[^\]\[]|\[[^\]]*\])*\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
REFERENCE = re.compile(r"^\s{0,3}\[[^\]]+\]:\s+<?(\S+?)>?(?:\s|$)")
CODE_SPAN = re.compile(r"`([^`]+)`")
REPOSITORY_PATH = re.compile(r"[\w.-]+(?:/[\w.-]+)+/?|[\w-]+/")
CITED_DOCUMENT = re.compile(r"(?<![\w/.-])((?:[\w-]+/)*[\w-]+\.md)\b")
SHELLS = {"sh", "bash", "shell", "console"}
BINARIES = {"spanpool": "bazel-bin/cli/spanpool", "spanpoold": "bazel-bin/server/spanpoold"}
# What may stand before a command.
PREFIXES = {"sudo", "exec", "time", "env", "nohup", "!", "then", "do", "if", "while"}


def exists(path):
    return os.path.exists(os.path.join(ROOT, path))


def split_blocks(text):
    """Yields (line, text, language): language is None outside of fenced blocks."""
    fence, language = None, None
    for number, line in enumerate(text.split("\n"), 1):
        match = FENCE.match(line)
        if match and fence is None:
            fence, language = match.group(2), match.group(3)
        elif match and match.group(2).startswith(fence) and not match.group(3):
            fence, language = None, None
        else:
            yield number, line, language if fence else None


@functools.lru_cache(maxsize=None)
def anchors(path):
    """The anchors of a Markdown file, made from its headings as GitHub makes them."""
    found, counts = set(), {}
    for _, line, language in split_blocks(read(path)):
        if language is not None:
            continue
        found.update(re.findall(r"<a (?:name|id)=\"([^\"]+)\"", line))
        heading = re.match(r"#{1,6}\s+(.*?)\s*#*$", line)
        if not heading:
            continue
        text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading.group(1)).lower()
        slug = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        count = counts.get(slug, 0)
        counts[slug] = count + 1
        found.add(slug if count == 0 else "%s-%d" % (slug, count))
    return found


def check_link(path, line, link):
    if re.match(r"[a-z][a-z0-9+.-]*:", link):
        return  # another site
    target, _, anchor = link.partition("#")
    if target.startswith("/"):
        file = target[1:]
    else:
        file = os.path.normpath(os.path.join(os.path.dirname(path), target)) if target else path
    if not exists(file):
        yield Problem(path, line, "link to %s, which does not exist" % link)
    elif anchor and file.endswith(".md") and anchor not in anchors(file):
        yield Problem(path, line, "link to %s, but %s has no such heading" % (link, file))


@functools.lru_cache(maxsize=None)
def top_folders():
    return {entry for entry in os.listdir(ROOT)
            if os.path.isdir(os.path.join(ROOT, entry)) and not entry.startswith((".git", "bazel-"))}


def check_paths(path, line, text):
    for span in CODE_SPAN.findall(text):
        if not REPOSITORY_PATH.fullmatch(span) or span.split("/")[0] not in top_folders():
            continue
        beside = os.path.join(os.path.dirname(path), span)
        if not exists(span) and not exists(beside):
            yield Problem(path, line, "`%s` does not exist" % span)


def commands(text):
    """Yields (line, words) of each simple command of a document's shell blocks."""
    pending, start, here_document = "", 0, None
    for number, line, language in split_blocks(text):
        if language not in SHELLS:
            pending, here_document = "", None
            continue
        if here_document is not None:
            if line == here_document:
                here_document = None
            continue
        begins = re.search(r"<<'?(\w+)'?", line)
        here_document = begins.group(1) if begins else None
        if language == "console":
            if not line.startswith("$ ") and not pending:
                continue  # output
            line = line[2:] if line.startswith("$ ") else line
        if not pending:
            start = number
        if line.endswith("\\"):
            pending += line[:-1] + " "
            continue
        line, pending = pending + line, ""
        try:
            lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
            lexer.wordchars += "$@%,:+{}[]!^"
            tokens = list(lexer)
        except ValueError:
            continue  # a quote that spans lines
        words = []
        for token in tokens + [";"]:
            if set(token) <= set("|&;()"):
                while words and (words[0] in PREFIXES or re.match(r"\w+=", words[0])):
                    words.pop(0)
                if words:
                    yield start, words
                words = []
            else:
                words.append(token)


@functools.lru_cache(maxsize=None)
def dev_commands():
    listing = subprocess.run([os.path.join(ROOT, "dev"), "help"], stdin=subprocess.DEVNULL,
                             stdout=subprocess.PIPE, check=True, text=True).stdout
    return set(re.findall(r"^  (\w+)", listing, re.MULTILINE))


@functools.lru_cache(maxsize=None)
def test_labels():
    return run(["bazel", "query", "tests(//...)"]).split()


@functools.lru_cache(maxsize=None)
def help_of(binary, *arguments):
    """What a binary says of itself, or None if it is not built."""
    if not exists(BINARIES[binary]):
        return None
    result = subprocess.run([os.path.join(ROOT, BINARIES[binary]), *arguments, "--help"],
                            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, timeout=60, check=False, text=True)
    return result.stdout if result.returncode == 0 else ""


def check_dev(words):
    if len(words) < 2:
        return
    if words[1] not in dev_commands():
        yield "./dev has no command %s" % words[1]
    elif words[1] == "test":
        for pattern in words[2:]:
            if not any(pattern in label or pattern in label.replace(":", "/")
                       for label in test_labels()):
                yield "./dev test %s matches no test" % pattern


def check_binary(binary, arguments):
    text = help_of(binary)
    if text is None:
        return
    subcommand = None
    skip = False
    for word in arguments:
        if word in ("<", ">", ">>", "2"):
            skip = True
            continue
        if skip:
            skip = False
            continue
        if word.startswith("-"):
            flag = word.split("=")[0]
            texts = [text] + ([help_of(binary, subcommand)] if subcommand else [])
            if not any(re.search(r"(?<![\w-])%s(?![\w-])" % re.escape(flag), known or "")
                       for known in texts):
                yield "%s has no flag %s" % (" ".join(filter(None, [binary, subcommand])), flag)
            # The value of a flag is no command; flags without a value come with their command.
            skip = "=" not in word and subcommand is None and not re.search(
                r"(?<![\w-])%s(?:,\S+)?(?:\s{2,}|$)" % re.escape(flag), text, re.MULTILINE)
        elif binary == "spanpool" and subcommand is None:
            subcommand = word
            if not re.search(r"^\s+%s\b" % re.escape(word), text, re.MULTILINE):
                yield "spanpool has no command %s" % word


def check_command(words):
    name = words[0]
    if name == "./dev":
        yield from check_dev(words)
    elif os.path.basename(name) in BINARIES and (
            "/" not in name or name.startswith(("bazel-bin/", "./bazel-bin/"))):
        yield from check_binary(os.path.basename(name), words[1:])
    elif name == "bazel":
        for word in words[1:]:
            if re.match(r"//[\w/.-]*(:[\w/.-]+)?$", word):
                result = subprocess.run(["bazel", "query", word], cwd=ROOT, check=False,
                                        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                        stderr=subprocess.DEVNULL)
                if result.returncode != 0:
                    yield "there is no target %s" % word
    elif "/" in name and name.removeprefix("./").split("/")[0] in top_folders():
        if not exists(name):
            yield "%s does not exist" % name


def check_document(path):
    text = read(path)
    for line, content, language in split_blocks(text):
        if language is not None:
            continue
        for link in LINK.findall(CODE_SPAN.sub("", content)) + REFERENCE.findall(content):
            yield from check_link(path, line, link)
        yield from check_paths(path, line, content)
    for line, words in commands(text):
        for complaint in check_command(words):
            yield Problem(path, line, complaint)


def check_source(path):
    """Documents that a source cites stand at the root, in docs/ or beside it."""
    for number, line in enumerate(read(path).split("\n"), 1):
        for document in CITED_DOCUMENT.findall(line):
            places = ("", "docs", os.path.dirname(path))
            if not any(exists(os.path.join(place, document)) for place in places):
                yield Problem(path, number, "cites %s, which does not exist" % document)


def check(files):
    for path in files:
        if path.endswith(".md"):
            yield from check_document(path)
        elif path.endswith((".h", ".cc", ".proto", ".bzl")) or os.path.basename(path) == "BUILD":
            yield from check_source(path)
