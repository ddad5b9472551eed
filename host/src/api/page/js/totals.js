// Totals of the fleet, some with a chart of the last two minutes.

import { byId, el, setText } from "./dom.js";
import { STATES } from "./tables.js";
import { bytes, count, duration, parts } from "./format.js";
import { Plot } from "./plot.js";

/** For each total its name, the series of its chart, and a function from `Fleet` to [number, unit, name]. */
const TOTALS = [
  ["Speed", "mips", (f) => [...join(parts(f.mips * 1e6), "IPS")]],
  ["Ready", "ready", (f) => [count(f.states.ready), `of ${count(f.count)}`]],
  ["Packets", "packets", (f) => [...join(parts(f.history.at(-1)?.packets ?? 0), "/s")]],
  ["Private memory", null, (f) => memory(f)],
  ["Running for", null, (f) => [duration(f.uptime_seconds), f.uptime_seconds < 60 ? "s" : ""]],
];

const join = ([number, prefix], unit) => [number, prefix + unit];

function memory(fleet) {
  const [number, unit] = bytes(fleet.private_frames * fleet.frame_size);
  const shared = bytes(fleet.shared_frames * fleet.frame_size);
  return [number, unit, `Private memory, ${shared.join(" ")} shared`];
}

export class Totals {
  constructor() {
    this.rows = TOTALS.map(([name, key, show]) => {
      const number = el("span");
      const unit = el("small");
      const caption = el("figcaption", {}, name);
      const row = el("figure", { class: key ? "total" : "total plain" }, caption, el("p", {}, number, unit));
      let plot = null;
      if (key) {
        const canvas = el("canvas", { role: "img", "aria-label": `${name}, the last two minutes` });
        row.append(canvas);
        plot = new Plot(canvas);
      }
      byId("totals").append(row);
      return { caption, name, number, unit, key, show, plot };
    });
    this.shares = STATES.map((state) => {
      const share = el("i");
      share.dataset.state = state;
      byId("shares").append(share);
      return share;
    });
  }

  show(fleet) {
    for (const { caption, name, number, unit, key, show, plot } of this.rows) {
      const [value, rest, other] = show(fleet);
      setText(caption, other ?? name);
      setText(number, value);
      setText(unit, rest);
      plot?.show(fleet.history.map((point) => [point.t, point[key]]));
    }
    STATES.forEach((state, index) => {
      this.shares[index].style.flexGrow = fleet.states[state];
    });
    const label = STATES.filter((state) => fleet.states[state]).map((state) => `${fleet.states[state]} ${state}`);
    byId("shares").setAttribute("aria-label", `VMs by state: ${label.join(", ") || "none"}`);

    const machine = fleet.device ?? (fleet.backend === "cpu" ? "CPU" : fleet.backend);
    setText(byId("fleet-name"), `${fleet.name} on ${machine}`);
    byId("fleet-name").title = `pxvm ${fleet.version}, backend ${fleet.backend}, clock ${fleet.clock}`;
  }
}
