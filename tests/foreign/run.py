#!/usr/bin/env python3
"""Runs systems that others made, and tells whether each says and does what it should.

usage: run.py [options] PXVM FOLDER [WORD...]
  PXVM             the program, or - for QEMU alone
  FOLDER           where the systems' ready-made files are; docs/testing.md tells which
  WORD             run the guests whose name has one of these words in it

  --backend NAME   what runs them in pxvm: cpu, cuda, ... [default: cpu]
  --qemu           run each in QEMU too; PXVM_QEMU names another qemu-system-riscv32
  --jobs N         so many guests at a time [default: 1, for times that mean something]
  --patience N     wait N times as long as guests.conf says, for a slow host or backend
  --table FILE     other guests than those of guests.conf

A guest whose files are not in FOLDER is skipped; PXVM_NO_SKIP=1 makes that a failure. Prints a line
for each guest as it ends, with the seconds to the last text that was waited for, and the end of the
console where that text did not come. Exit code 0 if no guest failed, 1 if one did.
"""
import argparse
import concurrent.futures
import configparser
import os
import pty
import re
import select
import shlex
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
QEMU = [os.environ.get("PXVM_QEMU", "qemu-system-riscv32"), "-M", "virt", "-nographic"]
# A file of the folder, in a word of a command line.
FILE = re.compile(r"(?<!\w)@([\w./+-]+)")
# How much of a console a failure shows.
TAIL = 1200
# How fast text is typed: a 16550's FIFO has room for 16 bytes, and some guests poll it.
TYPING_PIECE, TYPING_PAUSE = 8, 0.05


class Mismatch(Exception):
    """The guest did something else than its script says."""


class Guest:
    """A running machine, its console on a terminal, as somebody would use it."""

    def __init__(self, command, patience):
        self.patience = patience
        self.text = ""
        self.seen = 0
        self.start = time.monotonic()
        self.terminal, end = pty.openpty()
        try:
            self.process = subprocess.Popen(
                command, stdin=end, stdout=end, stderr=end, start_new_session=True, env=os.environ | {"NO_COLOR": "1"}
            )
        except OSError:
            os.close(self.terminal)
            raise
        finally:
            os.close(end)

    def read(self, end):
        """Takes in what the console says next; false when it has said its last."""
        left = max(0, end - time.monotonic())
        if not select.select([self.terminal], [], [], left)[0]:
            raise Mismatch("nothing for too long")
        try:
            data = os.read(self.terminal, 65536)
        except OSError:
            return False  # the other end is closed
        self.text += data.decode(errors="replace").replace("\r", "").replace("\0", "")
        return True

    def see(self, pattern):
        """Waits for text that matches, behind what was seen before."""
        expression = re.compile(pattern, re.MULTILINE)
        end = time.monotonic() + self.patience
        while not (found := expression.search(self.text, self.seen)):
            try:
                more = self.read(end)
            except Mismatch:
                more = None
            if not more:
                why = "it ended" if more is False else f"{self.patience:g} s"
                raise Mismatch(f"{why} without {pattern!r}")
        self.seen = found.end()

    def type(self, text):
        """Types text; `\\r`, `\\n` and `\\xNN` in it are those characters."""
        data = text.encode().decode("unicode_escape").encode("latin-1")
        for at in range(0, len(data), TYPING_PIECE):
            os.write(self.terminal, data[at : at + TYPING_PIECE])
            time.sleep(TYPING_PAUSE)

    def exit(self, code):
        """Waits for the end of the emulator, with this exit code."""
        end = time.monotonic() + self.patience
        try:
            while self.read(end):
                pass
            got = self.process.wait(max(0, end - time.monotonic()))
        except (Mismatch, subprocess.TimeoutExpired):
            raise Mismatch(f"it still runs after {self.patience:g} s") from None
        if got != int(code):
            raise Mismatch(f"exit code {got} where {code} was expected")

    def stop(self):
        """Ends the emulator if it still runs."""
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self.terminal)


def steps(name, script):
    """A guest's script as verbs and what they are about."""
    result = [line.split(" ", 1) for line in script.strip().splitlines()]
    for step in result:
        if len(step) != 2 or step[0] not in ("see", "type", "exit"):
            sys.exit(f"{name}: no step of a script: {' '.join(step)}")
    return result


def play(command, script, patience):
    """Runs a command through a script; returns what is wrong with it, or None, and the seconds."""
    try:
        guest = Guest(command, patience)
    except OSError as error:
        return f"{command[0]}: {error.strerror}", None
    try:
        for verb, what in script:
            getattr(guest, verb)(what)
        return None, time.monotonic() - guest.start
    except Mismatch as mismatch:
        command_line = shlex.join(command)
        return f"{mismatch}\n  {command_line}\n--- console:\n{guest.text[-TAIL:]}\n---", None
    finally:
        guest.stop()


class Row:
    """A guest of the table, with the files of one folder."""

    def __init__(self, name, section, options):
        self.name = name
        self.lines = {"pxvm": section.get("pxvm"), "QEMU": section.get("qemu")}
        self.script = {
            "pxvm": steps(name, section["script"]),
            "QEMU": steps(name, section.get("qemu-script", section["script"])),
        }
        self.patience = section.getfloat("patience") * options.patience
        self.folder = options.folder
        self.backend = options.backend

    def missing(self):
        """The first file that the folder lacks."""
        lines = " ".join(line for line in self.lines.values() if line)
        files = [found.group(1) for found in FILE.finditer(lines)]
        return next((f for f in files if not os.path.exists(os.path.join(self.folder, f))), None)

    def command(self, emulator, pxvm):
        """The command line, or None where the guest is not for this emulator."""
        line = self.lines[emulator]
        if line is None:
            return None
        words = [FILE.sub(lambda f: os.path.join(self.folder, f.group(1)), word) for word in shlex.split(line)]
        return QEMU + words if emulator == "QEMU" else [pxvm, *words, "--backend", self.backend]

    def run(self, emulators, pxvm):
        """Runs the guest in each emulator; returns what was wrong and a result each."""
        wrong, results = [], []
        for emulator in emulators:
            command = self.command(emulator, pxvm)
            if command is None:
                results.append("-")
                continue
            failure, seconds = play(command, self.script[emulator], self.patience)
            if failure:
                wrong.append(f"{self.name} in {emulator}: {failure}")
            results.append("FAILED" if failure else f"{seconds:.2f} s")
        return wrong, results


def arguments():
    parser = argparse.ArgumentParser(usage=__doc__.split("usage: ")[1])
    parser.add_argument("pxvm")
    parser.add_argument("folder")
    parser.add_argument("words", nargs="*")
    parser.add_argument("--backend", default="cpu")
    parser.add_argument("--qemu", action="store_true")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--patience", type=float, default=1)
    parser.add_argument("--table", default=os.path.join(HERE, "guests.conf"))
    options = parser.parse_intermixed_args()
    if not os.path.isdir(options.folder):
        parser.error(f"no folder {options.folder}")
    return options


def main():
    options = arguments()
    table = configparser.ConfigParser(interpolation=None, comment_prefixes=("#",))
    with open(options.table) as file:
        table.read_file(file)
    rows = [Row(name, table[name], options) for name in table.sections()]
    if options.words:
        rows = [row for row in rows if any(word in row.name for word in options.words)]
    emulators = ["pxvm"] * (options.pxvm != "-") + ["QEMU"] * (options.qemu or options.pxvm == "-")
    width = max((len(row.name) for row in rows), default=5)
    print("guest".ljust(width), *(emulator.rjust(9) for emulator in emulators))

    counts = {"passed": 0, "failed": 0, "skipped": 0}
    with concurrent.futures.ThreadPoolExecutor(max(1, options.jobs)) as pool:
        runs = [row.missing() or pool.submit(row.run, emulators, options.pxvm) for row in rows]
        for row, run in zip(rows, runs):
            if isinstance(run, str):
                print(row.name.ljust(width), f"  not run: no {run}", flush=True)
                counts["skipped"] += 1
                continue
            wrong, results = run.result()
            print(row.name.ljust(width), *(result.rjust(9) for result in results), flush=True)
            for text in wrong:
                print(text, flush=True)
            counts["failed" if wrong else "passed"] += 1
    print(", ".join(f"{count} {what}" for what, count in counts.items()))
    skips_fail = bool(os.environ.get("PXVM_NO_SKIP"))
    sys.exit(1 if counts["failed"] or (skips_fail and counts["skipped"]) else 0)


if __name__ == "__main__":
    main()
