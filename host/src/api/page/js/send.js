// The form that sends a line to many VMs' consoles at once.

import * as api from "./api.js";
import { byId, setText } from "./dom.js";
import { count } from "./format.js";

export class Send {
  /** `shown()` returns which VMs are shown: {ids, state, byText, vm}; `vm` is the only one, or -1. */
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

  /**
   * Updates the targets with the number of VMs and of those shown. The target is what is shown, unless
   * the user has chosen another one since that changed.
   */
  show(all, filter, shown, vm) {
    const [first, second, third] = this.target.options;
    setText(first, all === 1 ? "the VM" : `all ${count(all)} VMs`);
    setText(second, `the ${count(shown)} shown`);
    setText(third, vm < 0 ? "" : this.fleet.name(vm));
    second.hidden = vm >= 0 || filter.isOpen;
    third.hidden = vm < 0;
    const scope = JSON.stringify([vm, filter.state, filter.text.trim()]);
    if (scope === this.scope) return;
    this.scope = scope;
    this.target.value = vm >= 0 ? "this" : filter.isOpen ? "all" : "shown";
    this.#tell("", false);
  }

  /** Returns the VMs that the line goes to, in the form of the API. */
  #to() {
    const { ids, state, byText, vm } = this.shown();
    if (this.target.value === "this") return { vms: [vm] };
    if (this.target.value === "all" || !(state || byText)) return {};
    return byText ? { vms: ids } : { state };
  }

  async #send() {
    const line = this.line.value;
    const to = this.#to();
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
