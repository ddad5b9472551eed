#!/usr/bin/env python3
"""Boots the built image in QEMU and uses it: page, shell, Ctrl-C, reboot, poweroff.

usage: boot-test.py [--firmware] [--disk] [--rom] [IMAGE-FOLDER]
  --firmware  with our OpenSBI, on a cpu without C, F and D
  --rom       with the root file system in flash, executed in place; needs dtc
  --disk      with an ext2 disk, mounted by the guest
"""
import os
import pty
import re
import select
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

HERE = os.path.dirname(os.path.abspath(__file__))
BUILD = os.path.join(HERE, "..", "build")
PROMPT = r"vm3:~# "


class Guest:
    """A QEMU machine with its console on a pseudo terminal."""

    def __init__(self, arguments):
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(arguments, stdin=slave, stdout=slave, stderr=slave)
        os.close(slave)
        self.text = ""
        self.seen = 0

    def wait_for(self, pattern, seconds=60):
        """Reads the console until `pattern` appears behind what was seen before."""
        end = time.monotonic() + seconds
        while True:
            found = re.compile(pattern).search(self.text, self.seen)
            if found:
                self.seen = found.end()
                return found
            left = end - time.monotonic()
            if left <= 0 or not select.select([self.master], [], [], left)[0]:
                self.fail(f"no {pattern!r} within {seconds} s")
            try:
                self.text += os.read(self.master, 65536).decode(errors="replace").replace("\r", "")
            except OSError:
                self.fail(f"the machine stopped before {pattern!r}")

    def type(self, text):
        os.write(self.master, text.encode())

    def run(self, command, expected):
        """Types a command at the prompt; its output, not its echo, must match."""
        self.type(command + "\n")
        self.wait_for(r"\n")
        self.wait_for(expected, 20)
        self.wait_for(PROMPT, 20)

    def fail(self, why):
        self.process.kill()
        sys.exit(f"--- console:\n{self.text}\n--- boot test failed: {why}")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


FLASH, FLASH_SIZE = 0x22000000, 32 << 20


def flash(image, scratch, arguments):
    """What adds the ROM to a machine: its second flash, which the first does not boot from."""
    with open(image + "/rootfs.cramfs", "rb") as f:
        rom = f.read()
    with open(scratch + "/flash", "wb") as f:
        f.write(rom.ljust(FLASH_SIZE, b"\0"))
    window = 1 << (len(rom) - 1).bit_length()
    device = ["-drive", f"if=pflash,unit=1,format=raw,readonly=on,file={scratch}/flash"]
    # QEMU's own tree has a flash to be probed; Linux is to take it as a ROM.
    tree = scratch + "/tree"
    dump = [*arguments, *device, "-machine", f"dumpdtb={tree}.dtb"]
    subprocess.run(dump, check=True, stdout=subprocess.DEVNULL)
    text = subprocess.check_output(["dtc", "-q", "-I", "dtb", "-O", "dts", tree + ".dtb"], text=True)
    node = f'flash@{FLASH:x} {{ compatible = "mtd-rom"; reg = <0 {FLASH} 0 {window}>; bank-width = <4>; }};'
    text, count = re.subn(r"flash@20000000 \{[^}]*\};", node, text)
    assert count == 1, "QEMU's device tree has no flash"
    subprocess.run(["dtc", "-q", "-O", "dtb", "-o", tree + ".rom.dtb"], input=text, text=True, check=True)
    return [*device, "-dtb", tree + ".rom.dtb"]


def uptime_on_page(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as reply:
        page = reply.read().decode()
    assert "<h1>vm3</h1>" in page and "10.0.2.15" in page and page.endswith("</html>\n"), page
    return float(re.search(r"Uptime<dd>([0-9.]+) s", page).group(1))


def main():
    options = [a for a in sys.argv[1:] if a.startswith("--")]
    if set(options) - {"--firmware", "--disk", "--rom"}:
        sys.exit(__doc__)
    folders = [a for a in sys.argv[1:] if not a.startswith("--")]
    image = folders[0] if folders else subprocess.check_output([BUILD, "--dir"], text=True).strip()
    port = free_port()
    root = "root=mtd0 rootfstype=cramfs ro init=/init" if "--rom" in options else "retain_initrd"
    line = f"console=ttyS0 quiet {root} panic=1 pxvm.host=vm3"
    line += " ip=10.0.2.15::10.0.2.2:255.255.255.0:vm3:eth0:off"
    cpu, firmware = "rv32", []
    if "--firmware" in options:
        folder = subprocess.check_output([BUILD, "firmware", "--dir"], text=True).strip()
        cpu += ",c=off,f=off,d=off,zfa=off,h=off"
        firmware = ["-bios", folder + "/fw_dynamic.bin"]
    devices = []
    with tempfile.TemporaryDirectory() as scratch:
        if "--disk" in options:
            disk = scratch + "/disk"
            with open(disk, "wb") as f:
                f.truncate(8 << 20)
            subprocess.run(["/sbin/mke2fs", "-q", "-t", "ext2", disk], check=True)
            devices = ["-drive", f"file={disk},format=raw,if=none,id=d0"]
            devices += ["-device", "virtio-blk-device,drive=d0"]
            line += " pxvm.mount=/dev/vda:/mnt"
        arguments = (
            ["qemu-system-riscv32", "-M", "virt", "-cpu", cpu, "-m", "24M", "-nographic", "-no-user-config"]
            + ["-kernel", image + "/Image", "-append", line]
            + ["-netdev", f"user,id=n0,hostfwd=tcp:127.0.0.1:{port}-:80"]
            + ["-device", "virtio-net-device,netdev=n0"]
            + firmware
            + devices
        )
        if "--rom" in options:
            arguments += flash(image, scratch, arguments)
        else:
            arguments += ["-initrd", image + "/initramfs.cpio"]
        guest = Guest(arguments)
        ready = r"PXVM READY host=vm3 uptime=([0-9]+\.[0-9][0-9])\n"
        print("READY at", guest.wait_for(ready).group(1), "s")
        guest.wait_for(PROMPT)

        first = uptime_on_page(port)
        time.sleep(2.5)
        second = uptime_on_page(port)
        assert 1 < second - first < 6, (first, second)
        print(f"page: uptime {first} then {second}")

        guest.run("uname -nm", r"vm3 riscv32\n")
        guest.run("echo $((6 * 7)) | tr 4 x", r"x2\n")
        guest.run("whoami; tty", r"root\n/dev/ttyS0\n")
        guest.run("nproc; ping -c 1 10.0.2.2 | grep -c ttl", r"1\n1\n")
        guest.run("wget -qO- http://127.0.0.1/status | head -n 1", r"Active connections")
        guest.type("sleep 1000\n")
        time.sleep(1)
        guest.type("\x03")
        guest.wait_for(PROMPT)
        guest.run("sleep 1000 & sleep 0.2; jobs", r"Running +sleep 1000")
        guest.run("kill %1; wait; jobs | wc -l", r"0\n")
        guest.type("exit\n")
        guest.wait_for(r"BusyBox")
        guest.wait_for(PROMPT)
        guest.run("grep -c . /proc/mounts; echo $$", r"[0-9]+\n[0-9]+\n")
        print("shell: commands, Ctrl-C, jobs, respawn")
        if "--rom" in options:
            text = rf"r-xp {FLASH >> 20:x}[0-9a-f]{{5}} [^\n]* /bin/busybox\n"
            guest.run("grep r-xp /proc/self/maps", text)
            guest.run("echo x > /file; echo kept > ~/file; cat ~/file", r"Read-only file system\nkept\n")
            print("rom: text is executed in place, the root is read-only")
        if "--disk" in options:
            guest.run("echo kept > /mnt/file; mount | grep vda", r"/dev/vda on /mnt type ext2")

        guest.type("reboot\n")
        guest.wait_for(ready)
        guest.wait_for(PROMPT)
        print("reboot")
        if "--disk" in options:
            guest.run("cat /mnt/file", r"kept\n")
            print("disk: kept its file")
        guest.type("poweroff\n")
        guest.wait_for(r"reboot: Power down", 20)
        guest.process.wait(20)
        print("poweroff")


if __name__ == "__main__":
    main()
