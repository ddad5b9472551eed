// Which VMs are shown: a search for names or a range of numbers, and a state.

import { STATES } from "./fleet.js";

const RANGE = /^(?:vm)?(\d{1,7})\s*-\s*(?:vm)?(\d{1,7})$/i;

export class Filter {
  constructor() {
    this.text = "";
    /** A state's name, or "" for all. */
    this.state = "";
  }

  get isOpen() {
    return this.text === "" && this.state === "";
  }

  /** A function that says whether a VM is shown. */
  test(fleet) {
    const state = STATES.indexOf(this.state);
    const byText = this.#byText(fleet);
    return (id) => (state < 0 || fleet.states[id] === state) && byText(id);
  }

  /** The VMs that are shown, in order. */
  matches(fleet) {
    const shown = this.test(fleet);
    const ids = [];
    for (let id = 0; id < fleet.count; id += 1) if (shown(id)) ids.push(id);
    return ids;
  }

  #byText(fleet) {
    const text = this.text.trim().toLowerCase();
    if (text === "") return () => true;
    const range = RANGE.exec(text);
    if (range) {
      const [first, last] = [Number(range[1]), Number(range[2])];
      return (id) => id >= first && id <= last;
    }
    const words = text.split(/[\s,]+/);
    return (id) => {
      const name = fleet.name(id);
      return words.some((word) => name.includes(word));
    };
  }
}
