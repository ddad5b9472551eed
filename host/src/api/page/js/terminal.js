// A VM's console: xterm.js on a WebSocket.

import { CanvasAddon, FitAddon, Terminal } from "/assets/vendor/terminal.js";
import * as api from "./api.js";
import { colour } from "./dom.js";

const AGAIN_MS = 2000;
/** Largest message that the server accepts, in bytes. */
const PIECE = 4096;

const theme = () => ({
  background: colour("panel"),
  foreground: colour("text"),
  cursor: colour("accent"),
  cursorAccent: colour("panel"),
  selectionBackground: colour("edge"),
});

export class Console {
  /** Calls `onLink` with the state of the connection, and `onLeave` when the user leaves the console. */
  constructor(host, { onLink, onLeave }) {
    this.onLink = onLink;
    this.id = -1;
    this.terminal = new Terminal({
      fontFamily: '"Plex Mono", ui-monospace, monospace',
      fontSize: 12.5,
      lineHeight: 1.15,
      scrollback: 5000,
      theme: theme(),
      // Screen readers cannot read a canvas. This keeps the lines as text beside it.
      screenReaderMode: true,
      // Links in output of a guest do nothing.
      linkHandler: { activate() {} },
    });
    // xterm's other renderer needs style elements, which the Content-Security-Policy forbids.
    this.terminal.loadAddon(new CanvasAddon());
    this.fit = new FitAddon();
    this.terminal.loadAddon(this.fit);
    this.terminal.open(host);
    // Between a reset and the next animation frame xterm.js does not know the height of a row.
    // A scroll event in between would divide by zero.
    this.clearing = 0;
    host.addEventListener("scroll", (event) => this.clearing && event.stopImmediatePropagation(), { capture: true });
    // Tab and Esc go to the guest, so another key leaves the console.
    this.terminal.attachCustomKeyEventHandler((event) => {
      if (!(event.ctrlKey && event.key === "]")) return true;
      if (event.type === "keydown") onLeave();
      event.preventDefault();
      return false;
    });
    this.terminal.onData((text) => this.#send(new TextEncoder().encode(text)));
    this.terminal.onBinary((text) => this.#send(Uint8Array.from(text, (c) => c.charCodeAt(0))));
    new ResizeObserver(() => {
      if (host.clientWidth > 0) this.#fit();
    }).observe(host);
    addEventListener("theme", () => {
      this.terminal.options.theme = theme();
    });
  }

  /** Attaches to a VM's console; to none if `id` is -1. */
  attach(id) {
    if (id === this.id) return;
    this.id = id;
    this.#clear();
    if (id >= 0) this.#connect();
    else this.#disconnect();
  }

  focus() {
    this.terminal.focus();
  }

  #fit() {
    this.fit.fit();
    // xterm.js can lose lines of a buffer that grows (its issue 6063) and then fails to
    // draw. The server has the history, so this attaches again.
    const { active } = this.terminal.buffer;
    if (active.length >= active.baseY + this.terminal.rows) return;
    this.terminal.reset();
    this.#clear();
    if (this.id >= 0) this.#connect();
  }

  #connect() {
    const { id } = this;
    this.#disconnect();
    const socket = api.consoleSocket(id);
    socket.binaryType = "arraybuffer";
    this.socket = socket;
    this.onLink("connecting");
    socket.addEventListener("open", () => {
      if (this.socket !== socket) return;
      // The server sends the history first.
      this.#clear();
      this.onLink("");
    });
    socket.addEventListener("message", ({ data }) => {
      if (this.socket === socket) this.terminal.write(typeof data === "string" ? data : new Uint8Array(data));
    });
    socket.addEventListener("close", () => {
      if (this.socket !== socket) return;
      this.socket = null;
      this.onLink("not connected, trying again");
      this.again = setTimeout(() => this.#connect(), AGAIN_MS);
    });
  }

  /** Clears output and modes of a guest, once pending output is drawn. */
  #clear() {
    this.clearing += 1;
    const done = () => (this.clearing -= 1);
    this.terminal.write("\x18\x1bc", () => setTimeout(() => requestAnimationFrame(done), 50));
  }

  #disconnect() {
    clearTimeout(this.again);
    const { socket } = this;
    this.socket = null;
    socket?.close();
  }

  #send(bytes) {
    if (this.socket?.readyState !== WebSocket.OPEN) return;
    for (let at = 0; at < bytes.length; at += PIECE) this.socket.send(bytes.subarray(at, at + PIECE));
  }
}
