#!/usr/bin/env python3
"""Clients of all manners, against machines whose port 80 is at 127.0.0.1:PORT+I, and by name at
127.0.0.1:PORT+COUNT. Used by soak.sh:  churn.py PORT COUNT SECONDS PID
"""
import os
import random
import socket
import struct
import sys
import threading
import time

REQUEST = b"GET / HTTP/1.0\r\nHost: vm%d.localhost\r\n\r\n"
THREADS = 6


def connect(port):
    client = socket.create_connection(("127.0.0.1", port), timeout=30)
    return client


def read_all(client):
    data = bytearray()
    while piece := client.recv(65536):
        data += piece
    return bytes(data)


def page(port, vm, half_close=False):
    with connect(port) as client:
        client.sendall(REQUEST % vm)
        if half_close:
            client.shutdown(socket.SHUT_WR)
        answer = read_all(client)
    if b"<title>vm%d</title>" % vm not in answer or not answer.rstrip().endswith(b"</html>"):
        raise AssertionError(f"vm{vm}: {answer[-80:]!r} of {len(answer)} bytes")


def rude(port, vm):
    """Sends a request, waits a little or not, and breaks the connection."""
    client = connect(port)
    client.sendall(REQUEST % vm)
    time.sleep(random.choice([0, 0, 0.001, 0.005]))
    if random.random() < 0.5:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def noise(port):
    with connect(port) as client:
        client.sendall(random.randbytes(200))
        try:
            read_all(client)
        except ConnectionError:
            pass


def slow(port, vm):
    """A request in pieces."""
    with connect(port) as client:
        for byte in REQUEST % vm:
            client.sendall(bytes([byte]))
            time.sleep(0.0005)
        if b"<title>vm%d</title>" % vm not in read_all(client):
            raise AssertionError(f"vm{vm}: slow request")


class Soak:
    def __init__(self, port, count, seconds, pid):
        self.port, self.count, self.pid = port, count, pid
        self.end = time.monotonic() + seconds
        self.done, self.failed, self.silent = 0, [], []
        self.lock = threading.Lock()

    def client(self):
        while time.monotonic() < self.end and len(self.failed) < 5:
            vm = random.randrange(self.count)
            port = self.port + vm
            dice = random.random()
            try:
                if dice < 0.5:
                    page(port, vm)
                elif dice < 0.6:
                    page(self.port + self.count, vm)
                elif dice < 0.7:
                    page(port, vm, half_close=True)
                elif dice < 0.85:
                    rude(port, vm)
                elif dice < 0.9:
                    noise(port)
                elif dice < 0.97:
                    connect(port).close()
                elif dice < 0.99:
                    slow(port, vm)
                elif len(self.silent) < 4 * self.count:
                    with self.lock:
                        self.silent.append(connect(port))
            except (OSError, AssertionError) as error:
                with self.lock:
                    self.failed.append(f"{type(error).__name__}: {error} (vm{vm}, {dice:.2f})")
            with self.lock:
                self.done += 1

    def files(self):
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def memory(self):
        """Resident memory in KiB."""
        for line in open(f"/proc/{self.pid}/status"):
            if line.startswith("VmRSS:"):
                return int(line.split()[1])
        raise AssertionError("no VmRSS")

    def run(self):
        files = self.files()
        threads = [threading.Thread(target=self.client) for _ in range(THREADS)]
        for t in threads:
            t.start()
        begun, settled = time.monotonic(), None
        while any(t.is_alive() for t in threads):
            time.sleep(min(10, max(0.1, self.end - time.monotonic())))
            # Guests touch more of their memory at first; after a third of the time that is over.
            if settled is None and time.monotonic() - begun > (self.end - begun) / 3:
                settled = self.memory()
            print(f"{time.monotonic() - begun:4.0f} s  {self.done} connections, {len(self.failed)} failed, "
                  f"{self.files()} files, {self.memory() >> 10} MiB", flush=True)
        for t in threads:
            t.join()
        for client in self.silent:
            client.close()
        for vm in range(self.count):
            page(self.port + vm, vm)
        limit = time.monotonic() + 60
        while self.files() > files and time.monotonic() < limit:
            time.sleep(0.2)
        grown = self.memory() - settled
        print(f"files {files} at first, {self.files()} at the end; "
              f"memory grew by {grown >> 10} MiB in the last two thirds")
        for text in self.failed:
            print("failed:", text)
        # In KiB: a guest may touch some more of its memory at any time.
        if self.failed or self.files() > files or grown > 256 * self.count + 4096:
            sys.exit(1)


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    Soak(*map(int, sys.argv[1:])).run()
