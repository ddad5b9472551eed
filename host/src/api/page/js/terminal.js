// A VM's console: xterm.js on a WebSocket.

import { CanvasAddon, FitAddon, Terminal } from "/assets/vendor/terminal.js";
import * as api from "./api.js";
import { colour } from "./dom.js";

const AGAIN_MS = 2000;
/** What the server accepts at a time. */
const PIECE = 4096;

const theme = () => ({
  background: colour("panel"),
  foreground: colour("text"),
  cursor: colour("accent"),
  cursorAccent: colour("panel"),
  selectionBackground: colour("edge"),
});

export class Console {
  /** `onLink` hears "connected" and the like; `onLeave` when the user wants out. */
  constructor(host, { onLink, onLeave }) {
    this.onLink = onLink;
    this.id = -1;
    this.terminal = new Terminal({
      fontFamily: '"Plex Mono", ui-monospace, monospace',
      fontSize: 12.5,
      lineHeight: 1.15,
      scrollback: 5000,
      theme: theme(),
      // The canvas cannot be read by everyone; this keeps the lines as text beside it.
      screenReaderMode: true,
      // Links in what a guest says lead nowhere.
      linkHandler: { activate() {} },
    });
    // xterm's other renderer needs style elements, which the page's policy forbids.
    this.terminal.loadAddon(new CanvasAddon());
    this.fit = new FitAddon();
    this.terminal.loadAddon(this.fit);
    this.terminal.open(host);
    // From a reset to the next frame xterm.js does not know how high a row is, and a
    // scroll event in between would take it to row 0 / 0.
    this.clearing = 0;
    host.addEventListener("scroll", (event) => this.clearing && event.stopImmediatePropagation(), { capture: true });
    // Tab and Esc are the guest's, so there is another way out.
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

  /** Attaches to a VM's console, or with -1 to none. */
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
    // draw. The server has the history, so that we begin again.
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
      // The server begins with the history.
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

  /** Forgets all that a guest has said or set, after what is still to be drawn. */
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
