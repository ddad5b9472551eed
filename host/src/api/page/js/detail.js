// The view of one VM: its page, console, numbers and machine state, and buttons for commands.

import * as api from "./api.js";
import { CommandButtons } from "./commands.js";
import { byId, el, setText } from "./dom.js";
import { Facts } from "./facts.js";
import { GuestPage } from "./guestpage.js";
import { Machine } from "./machine.js";
import { BOOTING, PAUSED, READY, STATES, STOPPED } from "./tables.js";
import { Console } from "./terminal.js";

const LOOK_MS = 1000;

export class Detail {
  /** `step(by)` goes to another VM: the next one for 1, the previous one for -1. */
  constructor(fleet, step) {
    this.fleet = fleet;
    this.id = -1;
    this.state = -1;
    this.isHeld = false;
    this.element = byId("detail");
    this.#build(step);
    setInterval(() => this.#look(), LOOK_MS);
  }

  get isShown() {
    return this.id >= 0;
  }

  open(id) {
    this.id = id;
    this.state = -1;
    this.reason = "";
    setText(this.name, this.fleet.name(id));
    setText(this.failure, "");
    this.#tellReply();
    this.facts.clear();
    this.machine.unknown("");
    this.element.hidden = false;
    this.page.attach(id);
    this.console ??= new Console(this.consoleView, {
      onLink: (text) => setText(this.consoleLink, text),
      onLeave: () => this.back.focus(),
    });
    this.console.attach(id);
    this.update();
    this.#look();
    this.element.scrollTop = 0;
  }

  close() {
    this.id = -1;
    this.element.hidden = true;
    this.page.clear();
    this.page.id = -1;
    this.console?.attach(-1);
  }

  /** Shows new numbers of the fleet, which may be of this VM. */
  update() {
    if (!this.isShown) return;
    const state = this.fleet.states[this.id];
    this.facts.sample(this.fleet.mips[this.id]);
    if (state === this.state) return;
    this.state = state;
    this.element.dataset.state = STATES[state];
    if (!this.page.isReachable) this.page.explain("This fleet has no network.");
    else if (state === READY) {
      this.page.explain("");
      this.page.load();
    } else if (state !== PAUSED) {
      this.page.clear();
      this.page.explain(state === BOOTING ? "booting" : `${STATES[state]}: there is no page`);
    } else if (!this.page.shown) this.page.explain("paused: its page is not loaded");
    this.#tellState();
    this.commands.show(this.id, this.fleet.name(this.id), state);
    this.#look();
  }

  key(event) {
    if (this.commands.key(event.key)) return true;
    if (event.key === "c") this.console.focus();
    else if (event.key === "j") this.next.click();
    else if (event.key === "k") this.previous.click();
    else return false;
    return true;
  }

  /** Fetches what the API has and the event stream does not. */
  async #look() {
    if (!this.isShown || document.hidden || this.isHeld || this.isLooking) return;
    const { id } = this;
    this.isLooking = true;
    try {
      const vm = await api.vm(id);
      if (this.id !== id) return;
      this.reason = vm.reason ?? "";
      this.#tellState();
      let own = vm.private_frames;
      if (vm.state === STATES[STOPPED]) this.machine.unknown("Stopped: there is no machine to look into.");
      else {
        const snapshot = await api.snapshot(id);
        if (this.id !== id) return;
        this.machine.show(snapshot);
        own ??= snapshot.private_frames;
      }
      this.facts.show(vm, own ?? null, this.fleet.info);
    } catch (error) {
      if (this.id === id) this.machine.unknown(error.message);
    } finally {
      this.isLooking = false;
    }
    if (this.isShown && this.id !== id) this.#look();
  }

  async #execute(id, command, values) {
    setText(this.failure, "");
    this.#tellReply();
    try {
      const { reply } = await api.execute(id, command, values);
      if (this.id === id) this.#tellReply(reply);
    } catch (error) {
      if (this.id === id) setText(this.failure, error.message);
    }
    this.#look();
  }

  #tellState() {
    const name = STATES[this.state] ?? "";
    setText(this.stateText, this.reason ? `${name}: ${this.reason}` : name);
  }

  /** Shows what a command returned, if that is more than the VM. */
  #tellReply(reply) {
    const isRecord = typeof reply === "object" && reply !== null;
    const fields = isRecord ? Object.entries(reply).map(([name, value]) => `${name}: ${value}`) : [reply];
    this.reply.hidden = reply === undefined;
    setText(this.reply, this.reply.hidden ? "" : fields.join("; "));
  }

  #build(step) {
    const button = (text, act, properties = {}) => {
      const element = el("button", { type: "button", ...properties }, text);
      element.addEventListener("click", act);
      return element;
    };
    this.back = el("a", { class: "back", href: "#/" }, "\u2039 Fleet");
    this.name = el("span");
    this.stateText = el("p", { class: "detail-state", role: "status" });
    this.failure = el("p", { class: "wrong", role: "alert" });
    this.reply = el("p", { class: "detail-state", role: "status", hidden: true });
    this.previous = button("\u2039", () => step(-1), { "aria-label": "Previous VM", "aria-keyshortcuts": "k" });
    this.next = button("\u203a", () => step(1), { "aria-label": "Next VM", "aria-keyshortcuts": "j" });
    this.commands = new CommandButtons((id, command, values) => this.#execute(id, command, values));

    this.page = new GuestPage(this.fleet);
    this.facts = new Facts();
    this.machine = new Machine();
    this.consoleView = el("div", { class: "console-view" });
    this.consoleLink = el("span", { class: "hint", role: "status" });
    const consoleBox = el(
      "section",
      { class: "box console-box" },
      el(
        "div",
        { class: "box-head" },
        el("h3", {}, "Console"),
        this.consoleLink,
        el("span", { class: "hint" }, el("kbd", {}, "Ctrl"), " ", el("kbd", {}, "]"), " leaves"),
      ),
      this.consoleView,
    );
    this.element.append(
      el(
        "div",
        { class: "detail-head" },
        this.back,
        el("h2", {}, el("span", { class: "glyph" }), this.name),
        this.stateText,
        this.failure,
        this.reply,
        el(
          "div",
          { class: "detail-actions" },
          el("div", { class: "choices", role: "group", "aria-label": "Neighbours" }, this.previous, this.next),
          ...this.commands.elements,
        ),
      ),
      el(
        "div",
        { class: "detail-body" },
        this.page.box,
        consoleBox,
        el(
          "div",
          { class: "side", tabIndex: 0, role: "group", "aria-label": "Numbers and machine" },
          this.facts.box,
          ...this.machine.boxes,
        ),
      ),
    );
  }
}
