// Fleets for the tests: starts pxvm, waits for its dashboard, stops it.

import { spawn } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

const START_MS = 60_000;
const END_MS = 10_000;

/** Kills all fleets when the tests end, however they end. */
const running = new Set();
process.once("exit", () => running.forEach((child) => child.kill("SIGKILL")));
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"]) process.once(signal, () => process.exit(1));

export class Fleet {
  /** Runs `pxvm boot` with these arguments. Resolves when the dashboard can be loaded. */
  static async start(pxvm, args, { listen = "127.0.0.1:0" } = {}) {
    const fleet = new Fleet();
    fleet.folder = mkdtempSync(join(tmpdir(), "pxvm-browser-"));
    const env = { ...process.env, XDG_STATE_HOME: fleet.folder, XDG_RUNTIME_DIR: fleet.folder };
    fleet.process = spawn(pxvm, ["boot", "--listen", listen, ...args], { env, stdio: ["ignore", "ignore", "pipe"] });
    running.add(fleet.process);
    fleet.ended = new Promise((end) => fleet.process.once("exit", end));
    fleet.process.once("exit", () => running.delete(fleet.process));
    fleet.said = "";
    let found;
    const url = new Promise((resolve) => (found = resolve));
    fleet.process.stderr.on("data", (bytes) => {
      fleet.said += bytes;
      const match = /dashboard: (http:\/\/\S+)/.exec(fleet.said);
      if (match) found(match[1]);
    });
    const late = sleep(START_MS, null, { ref: false });
    fleet.url = await Promise.race([url, late, fleet.ended.then(() => null)]);
    if (!fleet.url) {
      await fleet.end();
      throw new Error(`pxvm boot ${args.join(" ")} shows no page; it said:\n${fleet.said}`);
    }
    return fleet;
  }

  /** Returns the JSON at a path of the API. */
  async get(path) {
    return (await this.fetch(path)).json();
  }

  async post(path, body) {
    const headers = { "content-type": "application/json" };
    return this.fetch(path, { method: "POST", headers, body: body && JSON.stringify(body) });
  }

  async fetch(path, { headers, ...options } = {}) {
    const token = /[#?]token=(.*)/.exec(this.url)?.[1];
    const own = token ? { authorization: `Bearer ${token}` } : {};
    const signal = AbortSignal.timeout(20_000);
    return fetch(new URL(`/api/v1${path}`, this.url), { ...options, headers: { ...headers, ...own }, signal });
  }

  /** Returns the output of a VM's console, as text. */
  async console(id) {
    return (await this.fetch(`/vms/${id}/console`)).text();
  }

  async end() {
    if (this.process.exitCode === null && this.process.signalCode === null) {
      this.process.kill("SIGTERM");
      const over = await Promise.race([this.ended.then(() => true), sleep(END_MS, false, { ref: false })]);
      if (!over) this.process.kill("SIGKILL");
      await this.ended;
    }
    rmSync(this.folder, { recursive: true, force: true });
  }
}

/**
 * A kernel of a few instructions, which prints that it is ready and then waits for ever. Two
 * thousand such VMs start in a moment and need almost no memory.
 */
export function smallKernel(folder) {
  const text = Buffer.from("PXVM READY host=small\n\0");
  const code = [
    0x00000417, // auipc s0, 0
    0x02840413, // addi  s0, s0, 40: the text below
    0x00044503, // lbu   a0, 0(s0)
    0x00050a63, // beq   a0, zero, 20: to the wfi
    0x00100893, // addi  a7, zero, 1: SBI, console putchar
    0x00000073, // ecall
    0x00140413, // addi  s0, s0, 1
    0xfedff06f, // j     -20: to the lbu
    0x10500073, // wfi
    0xffdff06f, // j     -4
  ];
  const program = Buffer.concat([Buffer.from(Uint32Array.from(code).buffer), text]);
  const at = 0x80400000;
  const head = Buffer.alloc(52 + 32);
  head.set([0x7f, 0x45, 0x4c, 0x46, 1, 1, 1]); // ELF, 32 bits, little-endian
  head.writeUInt16LE(2, 16); // an executable
  head.writeUInt16LE(243, 18); // RISC-V
  head.writeUInt32LE(1, 20);
  head.writeUInt32LE(at, 24); // entry
  head.writeUInt32LE(52, 28); // program headers
  head.writeUInt16LE(52, 40);
  head.writeUInt16LE(32, 42);
  head.writeUInt16LE(1, 44);
  head.writeUInt16LE(40, 46);
  // One segment: load it, from the end of the head, read and execute.
  for (const [field, value] of [1, head.length, at, at, program.length, program.length, 5, 4].entries()) {
    head.writeUInt32LE(value, 52 + 4 * field);
  }
  const path = join(folder, "small.elf");
  writeFileSync(path, Buffer.concat([head, program]));
  return path;
}
