// A VM's page at full size, reloaded every other second while it is visible.

import * as api from "./api.js";
import { el, setText } from "./dom.js";
import { bringForward, guestFrame } from "./pages.js";

const RENEW_MS = 2000;
const TIMEOUT_MS = 15_000;
const ADDRESS = /^:?(\d{1,5})(\/[^\s]*)?$/;

export class GuestPage {
  constructor(fleet) {
    this.fleet = fleet;
    this.id = -1;
    this.isHeld = false;
    const label = "Port and path of the page";
    this.where = el("input", { type: "text", class: "where", spellcheck: false, "aria-label": label });
    this.live = el("input", { type: "checkbox", checked: true });
    this.tab = el("a", { class: "button", target: "_blank", rel: "noopener noreferrer" }, "Open in a tab");
    this.note = el("p", { class: "tile-note" });
    this.view = el("div", { class: "page-view" }, this.note);
    const reload = el("button", { type: "button" }, "Reload");
    reload.addEventListener("click", () => this.load());
    this.where.addEventListener("change", () => this.#go());
    this.box = el(
      "section",
      { class: "box page-box" },
      el(
        "div",
        { class: "box-head" },
        el("h3", {}, "Page"),
        el("label", { class: "check" }, this.live, "renew every 2 s"),
        this.where,
        reload,
        this.tab,
      ),
      this.view,
    );
    setInterval(() => {
      if (this.live.checked && !document.hidden && !this.isHeld && !this.coming) this.load();
    }, RENEW_MS);
  }

  attach(id) {
    if (id === this.id) return;
    this.clear();
    this.id = id;
    this.port = this.fleet.info?.network.http_port ?? 0;
    this.path = "/";
    this.#tell();
  }

  clear() {
    this.#forget();
    this.shown?.remove();
    this.shown = null;
  }

  /** Shows why there is no page; "" if there may be one. */
  explain(why) {
    setText(this.note, why);
    this.note.hidden = why === "";
  }

  load() {
    if (this.id < 0 || this.port === 0 || this.fleet.stateName(this.id) !== "ready") return;
    this.#forget();
    const frame = guestFrame(this.fleet.name(this.id));
    this.coming = frame;
    this.giveUp = setTimeout(() => this.#forget(), TIMEOUT_MS);
    frame.addEventListener("load", () => {
      if (this.coming !== frame) return;
      clearTimeout(this.giveUp);
      this.coming = null;
      bringForward(frame, this.shown);
      this.shown = frame;
    });
    const go = (url) => {
      if (this.coming !== frame) return;
      frame.src = url;
      this.view.append(frame);
    };
    api.pageUrl(this.id, this.port, this.path).then(go, () => this.coming === frame && this.#forget());
  }

  #forget() {
    clearTimeout(this.giveUp);
    this.coming?.remove();
    this.coming = null;
  }

  #go() {
    const match = ADDRESS.exec(this.where.value.trim());
    const port = match ? Number(match[1]) : 0;
    if (port >= 1 && port <= 65535) {
      this.port = port;
      this.path = match[2] ?? "/";
      this.clear();
      this.load();
    }
    this.#tell();
  }

  /** Whether VMs of this fleet have pages that can be reached. */
  get isReachable() {
    return Boolean(this.fleet.info?.network.http_port);
  }

  #tell() {
    this.where.disabled = !this.isReachable;
    this.where.value = `:${this.port}${this.path}`;
    this.tab.removeAttribute("href");
    const { id, port, path } = this;
    if (id < 0 || !this.isReachable) return;
    const isSame = () => this.id === id && this.port === port && this.path === path;
    // Without a URL the link has no target. The page shows why.
    const offer = (url) => isSame() && (this.tab.href = url);
    api.pageUrl(id, port, path).then(offer, () => {});
  }
}
