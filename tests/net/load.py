#!/usr/bin/env python3
"""Asks machines for their pages over HTTP and says how that went.

    load.py all    PORT COUNT            one request to each machine, all at once
    load.py single PORT COUNT REQUESTS   one request after the other, machine after machine
    load.py many   PORT COUNT SECONDS [CONNECTIONS [PROCESSES]]
                                         so many connections at any time (default: two a machine)

Machine I answers at 127.0.0.1:PORT+I. Every request is a connection of its own, and an answer
counts only if it is the whole page of the right machine. Prints a line for people and, with
--json, one for programs. Ends with 1 if a request was not answered.
"""
import errno
import json
import multiprocessing
import select
import socket
import sys
import time

TIMEOUT = 30.0
REQUEST = b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n"


class Client:
    """One request. `step` goes on with it; `done` is set at its end."""

    def __init__(self, port, vm, poll):
        self.vm, self.answer, self.done, self.error = vm, bytearray(), False, None
        self.poll, self.sent = poll, False
        self.begun = time.monotonic()
        self.socket = socket.socket()
        self.socket.setblocking(False)
        code = self.socket.connect_ex(("127.0.0.1", port + vm))
        if code not in (0, errno.EINPROGRESS):
            self.end(errno.errorcode.get(code, str(code)))
            return
        poll.register(self.socket.fileno(), select.EPOLLOUT)

    def end(self, error=None):
        self.took = time.monotonic() - self.begun
        self.done, self.error = True, error
        self.socket.close()

    def step(self):
        try:
            if not self.sent:
                self.socket.send(REQUEST)
                self.sent = True
                self.poll.modify(self.socket.fileno(), select.EPOLLIN)
                return
            data = self.socket.recv(65536)
        except BlockingIOError:
            return
        except OSError as error:
            self.end(type(error).__name__)
            return
        if data:
            self.answer += data
            return
        self.end(self.check())

    def check(self):
        """What is wrong with the answer."""
        head, _, body = bytes(self.answer).partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200 "):
            return "no page: %r" % bytes(self.answer[:40])
        if b"Content-Length: %d\r\n" % len(body) not in head + b"\r\n":
            return "cut"
        if b"<title>vm%d</title>" % self.vm not in body:
            return "another machine's page"
        return None


def drive(port, next_vm, connections):
    """Keeps `connections` requests under way, each to the machine that `next_vm` names, until it
    names none; answers all of them."""
    poll, open_, ended = select.epoll(), {}, []

    def begin():
        while len(open_) < connections:
            vm = next_vm()
            if vm is None:
                return
            client = Client(port, vm, poll)
            if client.done:
                ended.append(client)
            else:
                open_[client.socket.fileno()] = client

    begin()
    while open_:
        events = poll.poll(1.0)
        for number, _ in events:
            client = open_.get(number)
            if client:
                client.step()
                if client.done:
                    del open_[number]
                    ended.append(client)
        if not events:
            now = time.monotonic()
            for number in [n for n, c in open_.items() if now - c.begun > TIMEOUT]:
                client = open_.pop(number)
                client.end("timeout")
                ended.append(client)
        begin()
    return [(c.vm, c.took, c.error) for c in ended]


def burst(port, count):
    vms = iter(range(count))
    return drive(port, lambda: next(vms, None), count)


def single(port, count, requests):
    turns = iter(i % count for i in range(requests))
    return drive(port, lambda: next(turns, None), 1)


def worker(port, count, first, step, seconds, connections, results):
    end = time.monotonic() + seconds
    turn = first

    def next_vm():
        nonlocal turn
        if time.monotonic() >= end:
            return None
        vm, turn = turn % count, turn + step
        return vm

    results.put(drive(port, next_vm, connections))


def many(port, count, seconds, connections, processes):
    results = multiprocessing.Queue()
    share = max(1, connections // processes)
    workers = [
        multiprocessing.Process(
            target=worker, args=(port, count, i, processes, seconds, share, results))
        for i in range(processes)
    ]
    for w in workers:
        w.start()
    found = [entry for _ in workers for entry in results.get()]
    for w in workers:
        w.join()
    return found


def main(words):
    as_json = "--json" in words
    words = [w for w in words if w != "--json"]
    try:
        mode, port, count, *rest = words[0], *map(int, words[1:3]), *map(float, words[3:])
        if mode == "all" and not rest:
            run = lambda: burst(port, count)
        elif mode == "single" and len(rest) == 1:
            run = lambda: single(port, count, int(rest[0]))
        elif mode == "many" and 1 <= len(rest) <= 3:
            seconds = rest[0]
            connections = int(rest[1]) if len(rest) > 1 else 2 * count
            processes = int(rest[2]) if len(rest) > 2 else 1
            run = lambda: many(port, count, seconds, connections, processes)
        else:
            raise ValueError
    except (IndexError, ValueError):
        sys.exit(__doc__)
    begun = time.monotonic()
    found = run()
    wall = time.monotonic() - begun
    good = sorted(took for _, took, error in found if error is None)
    errors = {}
    for _, _, error in found:
        if error is not None:
            errors[error] = errors.get(error, 0) + 1
    at = lambda part: good[min(len(good) - 1, int(part * len(good)))] * 1e3 if good else None
    report = {
        "mode": mode, "machines": count, "asked": len(found), "answered": len(good),
        "machines_answered": len({vm for vm, _, error in found if error is None}),
        "seconds": wall, "per_second": len(good) / wall if wall else 0.0,
        "ms": {"min": at(0), "median": at(0.5), "p90": at(0.9), "p99": at(0.99), "max": at(1)},
        "errors": errors,
    }
    if as_json:
        print(json.dumps(report))
    else:
        ms = "  ".join(f"{k} {v:.2f}" for k, v in report["ms"].items() if v is not None)
        print(f"{mode:6} {report['machines_answered']} of {count} machines, "
              f"{len(good)} of {len(found)} requests, {wall:.2f} s, "
              f"{report['per_second']:.0f}/s  ms: {ms}"
              + (f"  errors: {errors}" if errors else ""))
    return 0 if good and not errors else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
