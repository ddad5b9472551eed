#!/usr/bin/env python3
"""Busy fleets under several builds of pxvm, side by side: needs python3 and release binaries, no Rust.

  tests/gpu/busy.py IMAGES OLD [NEW...] [--count N,...] [--work NAME,...] [--seconds S]
                    [--backend cuda] [--timeout S] [-- ARGUMENT OF pxvm boot...]

IMAGES is a folder with Image and rootfs.cramfs (buildroot/build makes them). For each number of
machines and each work, each build boots a fleet under the host's clock, types the line of
`pxvm bench --workload busy` at every console through the API, waits until every machine has begun,
and measures for S seconds. Builds take turns, so that they see the same card at the same time.
Prints a line for each fleet: GIPS as the API counts them, rounds of the work a second as the consoles
show them, and both as a ratio to the first build. What the machines print must be what they print under
the first build. Ends with 1 if it is not, or if a fleet fails.
"""

import argparse
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

LINES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../host/src/commands/bench/works.txt")
RESULT = re.compile(rb"^B (\d+) ([0-9a-f]+)\r?$", re.M)
# Machines that have one line, typed in one request: its body is 256 KiB at most.
AT_ONCE = 8192
WARM_UP = 2


def works():
    with open(LINES) as file:
        return dict(line.rstrip("\n").split(" ", 1) for line in file)


def call(url, path, body=None):
    data = json.dumps(body).encode() if body else None
    request = urllib.request.Request(url + path, data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Failed(Exception):
    pass


class Fleet:
    def __init__(self, pxvm, args, count):
        self.count, self.limit = count, time.monotonic() + args.timeout
        self.folder = tempfile.mkdtemp(prefix="pxvm-busy-")
        self.url = f"http://127.0.0.1:{free_port()}"
        self.errors = open(os.path.join(self.folder, "errors"), "w+")
        self.logs = [os.path.join(self.folder, "logs", f"vm{vm}.log") for vm in range(count)]
        command = [pxvm, "boot", "--backend", args.backend, "--count", str(count), "--until", "never"]
        command += ["--net", "none", "--listen", self.url.removeprefix("http://")]
        command += ["--console-dir", os.path.join(self.folder, "logs"), "--append", "ip=off"]
        command += ["--kernel", f"{args.images}/Image", "--rom", f"{args.images}/rootfs.cramfs"]
        self.process = subprocess.Popen(
            command + args.more, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=self.errors
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.errors.close()
        shutil.rmtree(self.folder)

    def until(self, done, what):
        while not done():
            if self.process.poll() is not None:
                self.errors.seek(0)
                raise Failed(f"ended: {self.errors.read()[-300:].strip()}")
            if time.monotonic() > self.limit:
                raise Failed(f"not {what} in time")
            time.sleep(0.1)

    def is_ready(self):
        try:
            states = call(self.url, "/api/v1/fleet")["states"]
        except (urllib.error.URLError, OSError):
            return False
        if states.get("faulted") or states.get("halted"):
            raise Failed(f"machines ended: {states}")
        return states["ready"] == self.count

    def type(self, line, vms):
        for i in range(0, len(vms), AT_ONCE):
            call(self.url, "/api/v1/input", {"line": line, "vms": vms[i : i + AT_ONCE]})

    def results(self):
        """The results that each machine has printed, by round."""
        found = []
        for log in self.logs:
            with open(log, "rb") as file:
                found.append({int(n): result for n, result in RESULT.findall(file.read())})
        return found

    def all_begun(self):
        # Only those that had not are looked at again.
        def begun(log):
            try:
                with open(log, "rb") as file:
                    return RESULT.search(file.read())
            except FileNotFoundError:
                return False

        self.idle = [log for log in self.idle if not begun(log)]
        return not self.idle

    def look(self):
        return time.monotonic(), call(self.url, "/api/v1/fleet")["instructions"]


def lines_of(work, count):
    """Each line, with the machines that get it."""
    lines = works()
    if work != "mix":
        return [(lines[work], list(range(count)))]
    names = list(lines)
    return [(lines[name], list(range(i, count, len(names)))) for i, name in enumerate(names)]


def measure(pxvm, args, count, work):
    begun = time.monotonic()
    with Fleet(pxvm, args, count) as fleet:
        fleet.until(fleet.is_ready, "ready")
        ready = time.monotonic() - begun
        for line, vms in lines_of(work, count):
            if vms:
                fleet.type(line, vms)
        fleet.idle = fleet.logs
        fleet.until(fleet.all_begun, "busy")
        time.sleep(WARM_UP)
        before, first = time.monotonic(), fleet.results()
        start, instructions = fleet.look()
        time.sleep(args.seconds)
        end, more = fleet.look()
        after, last = time.monotonic(), fleet.results()
        # Reading takes time, with many machines.
        rounds = sum(map(len, last)) - sum(map(len, first))
        gips = (more - instructions) / (end - start) / 1e9
        return ready, gips, rounds / (after - before), last


def different(one, other):
    """Where two runs of the same work came to different results."""
    for vm, (a, b) in enumerate(zip(one, other)):
        for n in sorted(a.keys() & b.keys()):
            if a[n] != b[n]:
                return f"vm{vm} printed {b[n].decode()} in round {n}, and {a[n].decode()} under the first build"
    return None


def numbers(text):
    return [int(n) for n in text.split(",")]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images")
    parser.add_argument("pxvm", nargs="+")
    parser.add_argument("--count", type=numbers, default=[256, 8448])
    parser.add_argument("--work", type=lambda text: text.split(","), default=["mix"])
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--backend", default="cuda")
    parser.add_argument("--timeout", type=float, default=120)
    arguments, more = sys.argv[1:], []
    if "--" in arguments:
        at = arguments.index("--")
        arguments, more = arguments[:at], arguments[at + 1 :]
    args = parser.parse_args(arguments)
    args.more = more
    known = ["mix", *works()]
    for work in args.work:
        if work not in known:
            parser.error(f"there is no work {work}; these are: {', '.join(known)}")

    for i, pxvm in enumerate(args.pxvm):
        version = subprocess.run([pxvm, "--version"], capture_output=True, text=True, check=True).stdout.strip()
        print(f"build {i}: {pxvm}, {version}")
    print("work           VMs  build   ready s  MIPS a VM      GIPS  ratio    rounds/s  ratio", flush=True)
    bad = 0
    for work in args.work:
        for count in args.count:
            base = None
            for i, pxvm in enumerate(args.pxvm):
                head = f"{work:<10} {count:>7}  {i:>5}"
                try:
                    ready, gips, rounds, results = measure(pxvm, args, count, work)
                except Failed as why:
                    print(f"{head}  {why}", flush=True)
                    bad += 1
                    continue
                base = base or (gips, rounds, results)
                ratio = lambda now, then: f"{now / then:5.2f}" if then else "    -"
                print(
                    f"{head}  {ready:>8.2f}  {gips * 1e3 / count:>9.3f}  {gips:>8.3f}  {ratio(gips, base[0])}"
                    f"  {rounds:>10.1f}  {ratio(rounds, base[1])}",
                    flush=True,
                )
                if wrong := different(base[2], results):
                    print(f"{head}  {wrong}", flush=True)
                    bad += 1
    sys.exit(bad != 0)


if __name__ == "__main__":
    main()
