// A VM's numbers in the detail view: a plot of the speed in the last minute, and a list of the others.

import { el, setText } from "./dom.js";
import { bytes, compact, count, mips } from "./format.js";
import { Plot } from "./plot.js";

const SPAN = 60;

export class Facts {
  constructor() {
    this.speed = el("span");
    const canvas = el("canvas", { role: "img", "aria-label": "Speed, the last minute" });
    this.plot = new Plot(canvas, { span: SPAN });
    this.points = [];
    this.list = el("dl", { class: "facts" });
    this.box = el(
      "section",
      { class: "box" },
      el("div", { class: "speed" }, el("p", {}, this.speed, el("small", { class: "unit" }, " MIPS")), canvas),
      this.list,
    );
  }

  clear() {
    this.points = [];
    this.list.replaceChildren();
  }

  /** Adds the current speed to the plot. Called several times a second. */
  sample(speed) {
    setText(this.speed, mips(speed));
    const now = performance.now() / 1000;
    this.points.push([now, speed]);
    while (this.points[0][0] < now - SPAN) this.points.shift();
    this.plot.show(this.points);
  }

  /** `own` is the number of the VM's private frames, or null where it is not known. */
  show(vm, own, fleet) {
    const { network } = vm;
    const packets = (kind) => `${count(network[`${kind}_packets`])}, ${bytes(network[`${kind}_bytes`]).join(" ")}`;
    const drops = Object.entries(network.drops ?? {}).filter(([, number]) => number > 0);
    const rows = [
      ["Instructions", compact(vm.instret)],
      ["Resets", count(vm.resets)],
      ["Received", packets("rx")],
      ["Sent", packets("tx")],
      ["Dropped", drops.map(([reason, number]) => `${count(number)} ${reason}`).join(", ") || "0"],
      ["Console", bytes(vm.console_bytes).join(" ")],
    ];
    if (own !== null) rows.push(["Own frames", `${count(own)}, ${bytes(own * fleet.frame_size).join(" ")}`]);
    rows.push(["Shared frames", count(fleet.shared_frames)]);
    if (vm.address) rows.push(["Address", vm.address]);
    for (const published of vm.published ?? []) rows.push(["Published", publishedAs(published)]);
    this.list.replaceChildren(...rows.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
  }
}

/** Returns "127.0.0.1:4003->80" with the first part as a link. */
function publishedAs(text) {
  const match = /^([\w.:[\]]+)->(\d+)$/.exec(text);
  if (!match) return text;
  const link = el("a", { href: `http://${match[1]}/`, target: "_blank", rel: "noopener noreferrer" }, match[1]);
  const whole = el("span");
  whole.append(link, ` to ${match[2]}`);
  return whole;
}
