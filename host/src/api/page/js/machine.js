// The state of the machine: registers, CSRs, devices. Values that changed since the last
// snapshot are marked.

import { el, setText } from "./dom.js";
import { count, word } from "./format.js";

const MODES = { M: "machine", S: "supervisor", U: "user" };
/** ABI names of the registers x0 to x31. */
const REGISTERS = (
  "zero ra sp gp tp t0 t1 t2 s0 s1 a0 a1 a2 a3 a4 a5 a6 a7 s2 s3 s4 s5 s6 s7 s8 s9 s10 s11 t3 t4 t5 t6"
).split(" ");

/** Returns a copy of an object with these names first, in this order. */
function ordered(values, first) {
  const result = {};
  for (const name of [...first, ...Object.keys(values)]) if (name in values) result[name] = values[name];
  return result;
}

/** A list of names and machine words. Its elements are made again only if the names change. */
class Words {
  constructor(kind) {
    this.element = el("dl", { class: kind });
    this.entries = new Map();
  }

  show(values) {
    const names = Object.keys(values);
    if (names.length !== this.entries.size || names.some((name) => !this.entries.has(name))) {
      this.entries.clear();
      this.element.replaceChildren();
      for (const name of names) {
        const value = el("dd");
        this.element.append(el("div", {}, el("dt", {}, name), value));
        this.entries.set(name, value);
      }
    }
    for (const name of names) {
      const value = this.entries.get(name);
      const text = word(values[name]);
      value.classList.toggle("changed", value.textContent !== "" && value.textContent !== text);
      setText(value, text);
    }
  }

  clear() {
    this.entries.clear();
    this.element.replaceChildren();
  }
}

/** Yields rows of name and value from an object of any depth. */
function* flatten(object, prefix = "") {
  for (const [key, value] of Object.entries(object)) {
    const name = prefix + key.replaceAll("_", " ");
    if (value !== null && typeof value === "object") yield* flatten(value, `${name} `);
    else yield [name, typeof value === "number" ? count(value) : String(value)];
  }
}

export class Machine {
  constructor() {
    this.pc = el("span");
    this.mode = el("span");
    this.registers = new Words("registers");
    this.csrs = new Words("registers few");
    this.devices = el("dl", { class: "facts" });
    this.note = el("p", { class: "snapshot-note" });
    const field = (name, value) => el("span", {}, el("span", {}, name), value);
    this.hart = el("p", { class: "hart" }, field("pc", this.pc), field("mode", this.mode));
    const box = (title, ...content) =>
      el("section", { class: "box" }, el("div", { class: "box-head" }, el("h3", {}, title)), ...content);
    this.boxes = [
      box("Registers", this.note, this.hart, this.registers.element),
      box("Control and status registers", this.csrs.element),
      box("Devices", this.devices),
    ];
    this.unknown("");
  }

  show(snapshot) {
    this.#toggle(true);
    setText(this.pc, word(snapshot.pc));
    const mode = MODES[snapshot.privilege] ?? String(snapshot.privilege);
    setText(this.mode, snapshot.waiting ? `${mode}, waits` : mode);
    this.registers.show(ordered(snapshot.registers, REGISTERS));
    const names = Object.keys(snapshot.csrs);
    this.csrs.show(ordered(snapshot.csrs, names.filter((name) => name.startsWith("s"))));
    const rows = [];
    for (const [device, fields] of Object.entries(snapshot.devices)) {
      rows.push(el("dt", { class: "sub" }, device.replaceAll("_", "-")));
      for (const [name, value] of flatten({ ...fields })) rows.push(el("dt", {}, name), el("dd", {}, value));
    }
    this.devices.replaceChildren(...rows);
  }

  /** Shows why there is no machine state to see. */
  unknown(why) {
    this.#toggle(false);
    setText(this.note, why);
    this.registers.clear();
    this.csrs.clear();
  }

  #toggle(known) {
    this.note.hidden = known;
    this.hart.hidden = !known;
    for (const box of this.boxes.slice(1)) box.hidden = !known;
  }
}
