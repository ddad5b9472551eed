// The line that goes to many VMs' consoles at once.

import * as api from "./api.js";
import { byId, setText } from "./dom.js";
import { count } from "./format.js";

export class Send {
  /** `shown()` tells which VMs are shown: {ids, state, byText}. */
  constructor(fleet, shown) {
    this.fleet = fleet;
    this.shown = shown;
    this.line = byId("line");
    this.target = byId("target");
    this.sent = byId("sent");
    byId("send").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#send();
    });
  }

  focus() {
    this.line.focus();
    this.line.select();
  }

  /** How many would get it. */
  show(all, shown) {
    const [first, second] = this.target.options;
    setText(first, all === 1 ? "the VM" : `all ${count(all)} VMs`);
    setText(second, `the ${count(shown)} shown`);
  }

  async #send() {
    const line = this.line.value;
    const { ids, state, byText } = this.shown();
    let to = {};
    if (this.target.value === "shown" && (state || byText)) to = byText ? { vms: ids } : { state };
    if (to.vms?.length === 0) {
      this.#tell("no VM is shown", true);
      return;
    }
    this.#tell("sending", false);
    try {
      const { sent } = await api.sendLine(line, to);
      this.#tell(sent === 1 ? "sent to 1 VM" : `sent to ${count(sent)} VMs`, false);
      this.line.select();
    } catch (error) {
      this.#tell(error.message, true);
    }
  }

  #tell(text, isWrong) {
    setText(this.sent, text);
    this.sent.classList.toggle("wrong", isWrong);
  }
}
