#!/usr/bin/env python3
"""Tells whether two builds have the same program for the GPU.

  tests/gpu/same-ptx.py OLD.ptx NEW.ptx

A build leaves it in target/PROFILE/build/pxvm-*/out/pxvm.ptx. Names of functions and data, and the
order they stand in, do not count: both follow the names of Rust items, so renaming one changes them.
All else does. Prints each function that differs as a diff and ends with 1 if there is one.
"""

import difflib
import hashlib
import re
import sys
from collections import Counter

NAME = r"[A-Za-z_$%][\w$]*"
DATA = re.compile(rf"^\s*(?:\.visible |\.weak )*\.(?:global|const|shared)\b[^\[={{;]*?({NAME})\s*(?:\[|=|;)")
CODE = re.compile(rf"^(?:\.visible |\.weak )*\.(?:entry|func)\s*(?:\([^)]*\)\s*)?({NAME})")
# Numbers that count through the whole module. Those of a function's blocks stay: branches go to them.
COUNTERS = [(re.compile(r"\$L__BB\d+_"), "$L__BB_"), (re.compile(r"callseq \d+"), "callseq"),
            (re.compile(r"\$L__(?!BB_)(\w+?)\d+"), r"$L__\1"), (re.compile(r"prototype_\d+"), "prototype")]
HASH = re.compile(r"17h[0-9a-f]{16}E")


def items(path):
    """Returns the definitions of a module: from name to lines."""
    found, name, lines = {}, None, []
    for line in open(path, encoding="utf-8"):
        line = line.split("//")[0].rstrip() or None
        if line is None:
            continue
        if name is None:
            if data := DATA.match(line):
                found[data[1]] = [line]
                continue
            if not (code := CODE.match(line)):
                continue
            name, lines = code[1], []
        lines.append(line)
        if line in ("}", ";") or (line.endswith(";") and len(lines) == 1):
            # A prototype ends with a semicolon and has no body.
            if line == "}":
                found[name] = lines
            name = None
    return found


def signatures(found):
    """Returns a hash for each definition, of its text and of all that it refers to."""
    # Parameters have the name of their function in theirs.
    pattern = re.compile(rf"(?<![\w$%])({NAME}?)(_param_\d+)?(?![\w$])")
    parts = {}
    for name, lines in found.items():
        text = "\n".join(lines)
        for counter, plain in COUNTERS:
            text = counter.sub(plain, text)
        split, at = [], 0
        for match in pattern.finditer(text):
            if match[1] in found:
                split += [text[at : match.start()], match[1]]
                at = match.end(1)
        parts[name] = split + [text[at:]]

    def digest(name, known):
        hashed = hashlib.sha256()
        for i, part in enumerate(parts[name]):
            refers = i % 2 == 1
            part = ("itself" if part == name else known.get(part, "other")) if refers else part
            hashed.update(part.encode() + b"\0")
        return hashed.hexdigest()

    own = known = {name: digest(name, {}) for name in found}
    for _ in range(12):
        known = {name: digest(name, known) for name in found}
    return known, own, parts


def missing(there, here):
    """Returns the names of `here` whose value has no counterpart in `there`."""
    rest = Counter(there.values())
    names = []
    for name in sorted(here, key=readable):
        if rest[here[name]] > 0:
            rest[here[name]] -= 1
        else:
            names.append(name)
    return names


def readable(name):
    return HASH.sub("E", name)


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    old, new = (signatures(items(path)) for path in sys.argv[1:])
    if not old[0] or not new[0]:
        sys.exit("same-ptx: no functions in there")
    gone, added = missing(new[0], old[0]), missing(old[0], new[0])
    if not gone and not added:
        print(f"same: {len(old[0])} functions and data")
        return

    def text(module, other):
        # What only refers to something that differs is not worth a diff.
        _, own, parts = module
        for name in missing(other[1], own):
            yield from "".join(
                readable(part) if i % 2 else part for i, part in enumerate(parts[name])
            ).splitlines()

    for line in difflib.unified_diff(list(text(old, new)), list(text(new, old)), *sys.argv[1:], lineterm="", n=1):
        print(line)
    print(f"different: {len(gone)} of {len(old[0])} functions and data before, {len(added)} of {len(new[0])} now")
    sys.exit(1)


main()
