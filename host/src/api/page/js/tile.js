// A tile that shows one VM. Tiles are reused for other VMs as these come into view.

import { el, text } from "./dom.js";
import { PAUSED, READY, STATES } from "./tables.js";
import * as format from "./format.js";

/**
 * Sizes in CSS pixels: the least width, and that on a phone; the height of head and foot
 * with their borders, as in fleet.css; the window width that a guest's page sees.
 */
export const SIZES = {
  small: { least: 104, narrow: 84, around: 20 + 2 + 2, pageWidth: 440 },
  regular: { least: 212, narrow: 150, around: 26 + 2 + 22 + 2, pageWidth: 480 },
  large: { least: 360, narrow: 320, around: 26 + 2 + 22 + 2, pageWidth: 560 },
};
/** Ratio of a page's height to its width. */
export const PAGE_SHAPE = 0.625;

export class Tile {
  constructor(fleet, pages) {
    this.fleet = fleet;
    this.pages = pages;
    this.id = -1;
    this.state = -1;
    this.packets = 0;
    /** Whether there are numbers that the tile does not show yet. */
    this.isStale = false;

    this.link = el("a", { class: "tile-name", tabIndex: -1, draggable: false });
    // Hundreds of tiles change several times a second, so each updates only what is new.
    this.name = text();
    this.mips = text();
    this.rx = text();
    this.tx = text();
    this.stateName = text();
    this.noteText = text();
    this.load = el("i");
    this.share = "";
    this.isLit = false;
    this.link.append(this.name.node);
    this.note = el("p", { class: "tile-note" }, this.noteText.node);
    this.page = el("div", { class: "tile-page", inert: true }, this.note);
    this.lamp = el("span", { class: "tile-lamp" });
    const unit = (name) => el("span", { class: "unit" }, name);
    this.element = el(
      "li",
      { class: "tile" },
      el(
        "div",
        { class: "tile-head" },
        el("span", { class: "glyph" }),
        this.link,
        el("span", { class: "tile-mips number" }, this.mips.node, unit(" MIPS")),
      ),
      el("div", { class: "tile-load" }, this.load),
      this.page,
      el(
        "div",
        { class: "tile-foot number" },
        this.lamp,
        unit("rx"),
        el("span", {}, this.rx.node),
        unit("tx"),
        el("span", {}, this.tx.node),
        el("span", { class: "tile-state" }, this.stateName.node),
      ),
    );
  }

  /** Makes this the tile of a VM. */
  bind(id) {
    if (this.id === id) return;
    this.release();
    this.id = id;
    this.state = -1;
    this.packets = this.fleet.rx[id] + this.fleet.tx[id];
    this.link.href = `#/vm/${id}`;
    this.element.dataset.id = id;
    this.name.set(this.fleet.name(id));
    this.pages.show(id, this.page);
    this.update();
  }

  /** Detaches the tile from its VM. */
  release() {
    if (this.id >= 0) this.pages.hide(this.id);
    this.id = -1;
  }

  /** Positions the tile. Coordinates may be fractions of pixels. */
  place(x, y, width, height) {
    const { style } = this.element;
    style.transform = `translate(${x}px, ${y}px)`;
    style.width = `${width}px`;
    style.height = `${height}px`;
  }

  update() {
    const { fleet, id } = this;
    this.isStale = false;
    const state = fleet.states[id];
    if (state !== this.state) {
      this.state = state;
      this.element.dataset.state = STATES[state];
      this.link.setAttribute("aria-label", `${fleet.name(id)}, ${STATES[state]}`);
      this.stateName.set(state === READY ? "" : STATES[state]);
      this.pages.check(id);
    }
    const hasPage = fleet.info?.network.http_port && (state === READY || (state === PAUSED && this.pages.has(id)));
    this.noteText.set(hasPage ? "" : STATES[state]);
    this.mips.set(format.mips(fleet.mips[id]));
    this.rx.set(format.compact(fleet.rx[id]));
    this.tx.set(format.compact(fleet.tx[id]));
    const share = `scaleX(${(fleet.mips[id] / fleet.peak).toFixed(2)})`;
    if (share !== this.share) this.load.style.transform = share;
    this.share = share;
    const packets = fleet.rx[id] + fleet.tx[id];
    const isLit = packets !== this.packets;
    if (isLit !== this.isLit) this.lamp.classList.toggle("on", isLit);
    this.isLit = isLit;
    this.packets = packets;
  }
}
