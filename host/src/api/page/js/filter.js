// The filter that decides which VMs are shown: by number, range, name and state.

import { STATES } from "./tables.js";

/** Matches `17`, `vm17`, `40-63` and `vm40-vm63`, and `40-`, which the user has not finished typing. */
const RANGE = /^(?:vm)?(\d{1,7})(?:-(?:vm)?(\d{1,7})?)?$/;

/** Returns a function that tells whether a word of the search matches a VM. */
function meant(word) {
  const range = RANGE.exec(word);
  if (!range) return (id, name) => name.includes(word);
  const [from, to] = [Number(range[1]), Number(range[2] ?? range[1])];
  return (id) => id >= Math.min(from, to) && id <= Math.max(from, to);
}

export class Filter {
  constructor() {
    this.text = "";
    /** The name of the only state shown, or "" for all. */
    this.state = "";
  }

  get isOpen() {
    return this.text.trim() === "" && this.state === "";
  }

  /** Returns a function that tells whether a VM is shown. */
  test(fleet) {
    const state = STATES.indexOf(this.state);
    const byText = this.#byText(fleet);
    return (id) => (state < 0 || fleet.states[id] === state) && byText(id);
  }

  /** Returns the numbers of the VMs that are shown, in order. */
  matches(fleet) {
    const shown = this.test(fleet);
    const ids = [];
    for (let id = 0; id < fleet.count; id += 1) if (shown(id)) ids.push(id);
    return ids;
  }

  #byText(fleet) {
    const text = this.text.trim().toLowerCase();
    if (text === "") return () => true;
    const words = text.replaceAll(/\s*-\s*/g, "-").split(/[\s,]+/).filter((word) => word !== "").map(meant);
    return (id) => words.some((isMeant) => isMeant(id, fleet.name(id)));
  }
}
