// The buttons of the commands on a VM, one for each row of the table. A command that undoes another
// has the other's button. A sheet asks first where something is lost, and for arguments.

import { byId, el, setText } from "./dom.js";
import { COMMANDS, STOPPED } from "./tables.js";

/** Keys of commands. */
const KEYS = { pause: "p" };
/** Fields for arguments, by their type in JSON; a list is a text with commas. */
const FIELDS = { integer: "number", number: "number", boolean: "checkbox" };
const READERS = {
  integer: (input) => input.valueAsNumber,
  number: (input) => input.valueAsNumber,
  boolean: (input) => input.checked,
  array: (input) => input.value.split(",").map((part) => part.trim()),
};

const title = ({ name }) => name[0].toUpperCase() + name.slice(1);

export class CommandButtons {
  /** `execute(id, command, values)` executes a command on a VM. */
  constructor(execute) {
    this.execute = execute;
    this.buttons = COMMANDS.filter(({ undoes }) => !undoes).map((command) => this.#button(command));
    byId("confirm-cancel").addEventListener("click", () => byId("confirm").close());
  }

  get elements() {
    return this.buttons.map(({ element }) => element);
  }

  /** Shows what a VM takes in its state. */
  show(id, name, state) {
    Object.assign(this, { id, name, state });
    for (const { element, commands } of this.buttons) {
      const command = this.#taken(commands);
      setText(element, title(command ?? commands[0]));
      element.disabled = !command;
    }
  }

  /** Presses the button with that key; says whether there was one. */
  key(key) {
    const pressed = this.buttons.find(({ commands }) => KEYS[commands[0].name] === key);
    if (!pressed || pressed.element.disabled) return false;
    pressed.element.click();
    return true;
  }

  #button(command) {
    const commands = [command, ...COMMANDS.filter(({ undoes }) => undoes === command.name)];
    const element = el("button", { type: "button", class: command.stops ? "danger" : "" }, title(command));
    const key = KEYS[command.name];
    if (key) element.setAttribute("aria-keyshortcuts", key);
    element.addEventListener("click", () => this.#press(commands));
    return { element, commands };
  }

  #taken(commands) {
    return commands.find(({ takes }) => takes.includes(this.state));
  }

  #press(commands) {
    const command = this.#taken(commands);
    if (!command) return;
    // A VM that was stopped has nothing to lose.
    const loses = command.loses && this.state !== STOPPED;
    if (loses || command.arguments) this.#ask(command, loses ? command.loses : `${command.summary}.`);
    else this.execute(this.id, command, {});
  }

  #ask(command, text) {
    const { id } = this;
    const sheet = byId("confirm");
    const fields = Object.entries(command.arguments?.properties ?? {}).map(([name, schema]) => {
      const required = command.arguments.required.includes(name) && schema.type !== "boolean";
      return field(name, schema, required);
    });
    setText(byId("confirm-title"), `${title(command)} ${this.name}?`);
    setText(byId("confirm-text"), text);
    setText(byId("confirm-act"), title(command));
    byId("confirm-fields").replaceChildren(...fields.map(({ label }) => label));
    sheet.returnValue = "";
    sheet.showModal();
    const closed = () => {
      if (sheet.returnValue !== "act" || this.id !== id) return;
      const given = fields.filter(({ input }) => input.type === "checkbox" || input.value !== "");
      const values = Object.fromEntries(given.map(({ name, read }) => [name, read()]));
      this.execute(id, command, values);
    };
    sheet.addEventListener("close", closed, { once: true });
  }
}

/** A field for an argument, with its label, and what reads it. */
function field(name, { type, description, minimum, maximum }, required) {
  const input = el("input", { type: FIELDS[type] ?? "text", required, autocomplete: "off" });
  if (type === "integer") Object.assign(input, { min: minimum, max: maximum });
  // Without this, fields for numbers take whole ones only.
  if (type === "number") input.step = "any";
  const read = () => (READERS[type] ?? (() => input.value))(input);
  return { name, input, read, label: el("label", {}, description ?? name, input) };
}
