// The fleet as a grid of tiles. Only tiles in view have elements.

import { el, oncePerFrame } from "./dom.js";
import { PAGE_SHAPE, SIZES, Tile } from "./tile.js";

const GAP = 8;
const MARGIN = 16;
/** Rows rendered beyond each edge of the view, so that scrolling shows them at once. */
const BEYOND = 1;
/** Largest number of tiles updated at a time, a few times a second. More tiles take turns. */
const RENEWED = 80;
const TURN_MS = 250;

export class Grid {
  constructor(host, fleet, pages) {
    this.fleet = fleet;
    this.pages = pages;
    this.ids = [];
    this.size = "regular";
    /** The VM with the keyboard cursor. */
    this.cursor = 0;
    /** Tiles by index in `ids`, and spare ones for reuse. */
    this.tiles = new Map();
    this.spare = [];
    this.turn = 0;

    this.room = el("ul", { class: "tile-room", role: "list", "aria-label": "VMs" });
    this.element = el("div", { class: "tiles", hidden: true }, this.room);
    host.append(this.element);
    this.render = oncePerFrame(() => this.#render());
    this.element.addEventListener("scroll", this.render, { passive: true });
    new ResizeObserver(() => this.layout()).observe(this.element);
    this.room.addEventListener("focusin", (event) => {
      const tile = event.target.closest(".tile");
      if (tile) this.#moveTo(this.ids.indexOf(Number(tile.dataset.id)), false);
    });
  }

  get isShown() {
    return !this.element.hidden;
  }

  /** Shows or hides the grid. A hidden grid is not updated. */
  toggle(shown) {
    if (this.isShown === shown) return;
    this.element.hidden = !shown;
    if (shown) this.layout();
    else this.#clear();
  }

  setIds(ids) {
    const same = ids.length === this.ids.length && ids.every((id, at) => id === this.ids[at]);
    if (same) return;
    this.ids = ids;
    this.layout();
  }

  setSize(size) {
    this.size = size;
    this.element.dataset.size = size;
    this.layout();
  }

  layout() {
    if (!this.isShown) return;
    const { element } = this;
    const isNarrow = element.clientWidth < 600;
    const { least, narrow, around, pageWidth } = SIZES[this.size];
    element.dataset.size = this.size;
    const margin = isNarrow ? 12 : MARGIN;
    const bar = element.offsetWidth - element.clientWidth;
    const width = element.offsetWidth - 2 * margin - Math.max(0, bar - margin);
    const columns = Math.max(1, Math.floor((width + GAP) / ((isNarrow ? narrow : least) + GAP)));
    const tileWidth = Math.floor((width - GAP * (columns - 1)) / columns);
    const tileHeight = Math.round(around + (tileWidth - 2) * PAGE_SHAPE);
    // The tile in the upper left corner keeps its position.
    const first = this.shape ? Math.floor(element.scrollTop / this.shape.pitch) * this.shape.columns : 0;
    const changed = this.shape && this.shape.columns !== columns;
    this.shape = { margin, columns, tileWidth, tileHeight, pitch: tileHeight + GAP };
    element.style.setProperty("--page-width", `${pageWidth}px`);
    element.style.setProperty("--page-scale", (tileWidth - 2) / pageWidth);
    const rows = Math.ceil(this.ids.length / columns);
    this.room.style.height = `${2 * margin - GAP + rows * this.shape.pitch}px`;
    if (changed) element.scrollTop = Math.floor(first / columns) * this.shape.pitch;
    this.#render();
  }

  /** Shows new numbers of these VMs. */
  update(changed) {
    if (!this.isShown) return;
    clearTimeout(this.later);
    this.turn += 1;
    const turns = Math.ceil(this.tiles.size / RENEWED);
    let left = 0;
    for (const [at, tile] of this.tiles) {
      tile.isStale ||= tile.isLit || changed.has(tile.id);
      const isDue = (at + this.turn) % turns === 0 || tile.state !== this.fleet.states[tile.id];
      if (tile.isStale && isDue) tile.update();
      else if (tile.isStale) left += 1;
    }
    if (left > 0) this.later = setTimeout(() => this.update(new Set()), TURN_MS);
  }

  /** Moves the cursor if `key` is an arrow key. Returns whether it is. */
  key(key) {
    const at = Math.max(0, this.ids.indexOf(this.cursor));
    const { columns } = this.shape;
    const page = columns * Math.max(1, Math.floor(this.element.clientHeight / this.shape.pitch) - 1);
    const steps = {
      ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, PageUp: -page, PageDown: page,
      Home: -at, End: this.ids.length - 1 - at,
    };
    if (!(key in steps) || this.ids.length === 0) return false;
    const isFocused = this.room.contains(document.activeElement);
    const to = isFocused ? at + steps[key] : at;
    if (to < 0 || to >= this.ids.length) return key.startsWith("Arrow");
    this.#moveTo(to, true);
    return true;
  }

  /** Scrolls a VM into view and focuses it. */
  focus(id = this.cursor) {
    const at = this.ids.indexOf(id);
    if (at >= 0) this.#moveTo(at, true);
    else this.element.focus();
  }

  #moveTo(at, take) {
    if (at < 0) return;
    const before = this.#tileOf(this.cursor);
    if (before) before.link.tabIndex = -1;
    this.cursor = this.ids[at];
    if (take) {
      const { element } = this;
      const top = Math.floor(at / this.shape.columns) * this.shape.pitch;
      const bottom = top + this.shape.pitch + 2 * this.shape.margin;
      if (top < element.scrollTop) element.scrollTop = top;
      else if (bottom > element.scrollTop + element.clientHeight) element.scrollTop = bottom - element.clientHeight;
      this.#render();
    }
    const tile = this.#tileOf(this.cursor);
    if (!tile) return;
    tile.link.tabIndex = 0;
    if (take) tile.link.focus({ preventScroll: true });
  }

  #tileOf(id) {
    for (const tile of this.tiles.values()) if (tile.id === id) return tile;
    return undefined;
  }

  #render() {
    if (!this.isShown || !this.shape) return;
    const { margin, columns, tileWidth, tileHeight, pitch } = this.shape;
    const { scrollTop, clientHeight } = this.element;
    const first = Math.max(0, Math.floor((scrollTop - margin) / pitch) - BEYOND) * columns;
    const rows = Math.ceil(clientHeight / pitch) + 1 + 2 * BEYOND;
    const end = Math.min(this.ids.length, first + rows * columns);

    for (const [at, tile] of this.tiles) {
      if (at >= first && at < end && this.ids[at] === tile.id) continue;
      this.tiles.delete(at);
      tile.release();
      tile.element.remove();
      this.spare.push(tile);
    }
    // A cursor on a VM that the filter hides moves to the first one shown.
    if (end > first && !this.ids.includes(this.cursor)) this.cursor = this.ids[0];
    const added = [];
    for (let at = first; at < end; at += 1) {
      let tile = this.tiles.get(at);
      if (!tile) {
        tile = this.spare.pop() ?? new Tile(this.fleet, this.pages);
        this.tiles.set(at, tile);
        tile.bind(this.ids[at]);
        tile.link.tabIndex = this.ids[at] === this.cursor ? 0 : -1;
        tile.element.setAttribute("aria-setsize", this.ids.length);
        tile.element.setAttribute("aria-posinset", at + 1);
        added.push([at, tile.element]);
      }
      const [row, column] = [Math.floor(at / columns), at % columns];
      tile.place(margin + column * (tileWidth + GAP), margin + row * pitch, tileWidth, tileHeight);
    }
    this.#insert(added);
  }

  /** Inserts tiles in order of their VMs, for screen readers and the Tab key. */
  #insert(added) {
    if (added.length === 0) return;
    const existing = [...this.room.children];
    let next = 0;
    for (const [at, element] of added) {
      while (next < existing.length && Number(existing[next].getAttribute("aria-posinset")) <= at) next += 1;
      this.room.insertBefore(element, existing[next] ?? null);
    }
  }

  #clear() {
    for (const tile of this.tiles.values()) {
      tile.release();
      tile.element.remove();
      this.spare.push(tile);
    }
    this.tiles.clear();
  }
}
