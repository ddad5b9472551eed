// A large fleet as a map: one cell for each VM, drawn on a canvas, coloured by state or by
// speed. When the user zooms in far enough, cells in view become tiles.

import { colour, el, fitCanvas, oncePerFrame } from "./dom.js";
import * as format from "./format.js";
import { Gestures } from "./gestures.js";
import { palette, step } from "./ramp.js";
import { SIZES, Tile } from "./tile.js";
import { View } from "./view.js";

/** Widths from which a cell shows its number, its speed as well, and is replaced by a tile. */
const NUMBERED = 30;
const DETAILED = 72;
const TILED = 150;
/** Factor by which one press of a key or button zooms. */
const ZOOM_STEP = 1.6;
/** Width of a tile after a click into the map. */
const CLOSE = 240;
const ZOOM_MS = 220;

export class FleetMap {
  constructor(host, fleet, pages) {
    this.fleet = fleet;
    this.pages = pages;
    this.view = new View();
    this.by = "state";
    this.cursor = 0;
    this.pointed = -1;
    this.isMatch = () => true;
    this.colours = palette();
    this.tiles = new Map();
    this.spare = [];
    /** Cells to draw again; null for all. */
    this.stale = null;
    this.fastest = 0;
    this.onOpen = () => {};
    this.onLegend = () => {};

    this.canvas = el("canvas", { tabIndex: 0, role: "application" });
    this.mark = el("div", { class: "map-mark cursor", hidden: true });
    this.hover = el("div", { class: "map-mark", hidden: true });
    this.layer = el("ul", { class: "map-tiles tiles-layer", role: "list", "aria-label": "VMs in view" });
    this.tip = el("div", { class: "map-tip", hidden: true });
    const parts = [this.canvas, this.layer, this.hover, this.mark, this.tip];
    this.element = el("div", { class: "map", hidden: true }, ...parts);
    host.append(this.element);

    this.render = oncePerFrame(() => this.#render());
    new ResizeObserver(() => this.layout()).observe(this.element);
    addEventListener("theme", () => {
      this.colours = palette();
      this.redraw();
    });
    document.fonts.load('500 12px "Plex Mono"').then(() => this.redraw());
    this.canvas.addEventListener("focus", () => this.redraw());
    this.canvas.addEventListener("blur", () => this.redraw());
    new Gestures(this.element, {
      pan: (dx, dy) => this.#change(() => this.view.pan(dx, dy)),
      zoom: (factor, x, y) => this.#change(() => this.view.zoom(factor, x, y)),
      point: (x, y) => this.#point(x, y),
      leave: () => this.#point(-1, -1),
      click: (x, y) => this.#click(x, y),
    });
  }

  get isShown() {
    return !this.element.hidden;
  }

  toggle(shown) {
    if (this.isShown === shown) return;
    this.element.hidden = !shown;
    if (shown) this.layout();
    else for (const at of this.tiles.keys()) this.#dropTile(at);
  }

  /** Sets which VMs match the filter. The others are drawn faint. */
  setMatch(isMatch) {
    this.isMatch = isMatch;
    this.redraw();
  }

  setColour(by) {
    this.by = by;
    this.redraw();
  }

  layout() {
    if (!this.isShown) return;
    this.view.resize(this.fleet.count, this.element.clientWidth, this.element.clientHeight);
    this.redraw();
  }

  update(changed) {
    if (!this.isShown) return;
    if (this.fleet.count !== this.view.count) {
      this.layout();
      return;
    }
    for (const tile of this.tiles.values()) {
      if (changed.has(tile.id) || tile.isLit) tile.update();
    }
    // The scale follows the fastest VM slowly, so that not every cell changes colour each time.
    const moved = Math.abs(this.fleet.fastest - this.fastest) > this.fastest * 0.15;
    if (this.by === "mips" && moved) this.redraw();
    else if (this.stale) {
      for (const id of changed) this.stale.add(id);
      this.render();
    }
    if (this.pointed >= 0 && changed.has(this.pointed)) this.#tell();
  }

  redraw() {
    this.stale = null;
    this.render();
  }

  /** Zooms in or out by one step around the middle. */
  zoomIn() {
    this.#zoom(ZOOM_STEP);
  }

  zoomOut() {
    this.#zoom(1 / ZOOM_STEP);
  }

  fit() {
    this.#glide(() => this.view.fit());
  }

  key(key) {
    const { columns, count } = this.view;
    const steps = {
      ArrowLeft: -1,
      ArrowRight: 1,
      ArrowUp: -columns,
      ArrowDown: columns,
      Home: -this.cursor,
      End: count - 1 - this.cursor,
    };
    if (key in steps) {
      const to = this.cursor + (document.activeElement === this.canvas ? steps[key] : 0);
      if (to >= 0 && to < count) this.focus(to);
      return true;
    }
    if (key === "Enter" && document.activeElement === this.canvas) this.onOpen(this.cursor);
    else if (key === "+" || key === "=") this.#approach(this.cursor, this.view.cell * ZOOM_STEP);
    else if (key === "-") this.zoomOut();
    else if (key === "0") this.fit();
    else return false;
    return true;
  }

  focus(id = this.cursor) {
    this.cursor = Math.min(id, Math.max(0, this.fleet.count - 1));
    this.#change(() => this.view.reveal(this.cursor));
    this.canvas.focus({ preventScroll: true });
  }

  #zoom(factor) {
    this.#glide(() => this.view.zoom(factor, this.view.width / 2, this.view.height / 2));
  }

  /** Centres a cell and gives it this width. */
  #approach(at, cell) {
    this.#glide(() => this.view.set(this.view.centred(at, cell)));
  }

  /** Changes the view without an animation. */
  #change(change) {
    this.target = null;
    change();
    this.redraw();
  }

  /** Changes the view with a short animation. */
  #glide(change) {
    const { view } = this;
    const from = { cell: view.cell, x: view.x, y: view.y };
    change();
    const to = { cell: view.cell, x: view.x, y: view.y };
    if (matchMedia("(prefers-reduced-motion: reduce)").matches) {
      this.#change(() => {});
      return;
    }
    const { isFitted } = view;
    const target = { start: performance.now() };
    this.target = target;
    const move = (now) => {
      if (this.target !== target) return;
      const share = Math.min(1, Math.max(0, (now - target.start) / ZOOM_MS));
      const eased = 1 - (1 - share) ** 3;
      for (const key of ["cell", "x", "y"]) view[key] = from[key] + (to[key] - from[key]) * eased;
      view.isFitted = isFitted;
      this.redraw();
      if (share < 1) requestAnimationFrame(move);
    };
    requestAnimationFrame(move);
  }

  #point(x, y) {
    this.pointed = x < 0 ? -1 : this.view.at(x, y);
    this.pointerX = x;
    this.pointerY = y;
    this.#tell();
  }

  #click(x, y) {
    const at = this.view.at(x, y);
    if (at < 0) return;
    this.cursor = at;
    if (this.view.cell >= TILED) this.onOpen(at);
    else this.#approach(at, CLOSE);
  }

  /** Shows a text about the VM under the pointer. */
  #tell() {
    const { fleet, pointed, view, tip, hover } = this;
    const shown = pointed >= 0 && pointed < fleet.count && view.cell < TILED;
    tip.hidden = !shown;
    hover.hidden = !shown;
    if (!shown) return;
    tip.dataset.state = fleet.stateName(pointed);
    const value = (text) => el("span", { class: "number" }, text);
    tip.replaceChildren(
      el("b", {}, el("span", { class: "glyph" }), `${fleet.name(pointed)} ${fleet.stateName(pointed)}`),
      el("span", {}, "MIPS"), value(format.mips(fleet.mips[pointed])),
      el("span", {}, "packets"), value(format.compact(fleet.rx[pointed] + fleet.tx[pointed])),
    );
    this.#frame(hover, pointed);
    const [width, height] = [tip.offsetWidth, tip.offsetHeight];
    const left = this.pointerX + 14 + width > view.width ? this.pointerX - 14 - width : this.pointerX + 14;
    const top = Math.min(this.pointerY + 14, view.height - height - 4);
    tip.style.transform = `translate(${Math.max(4, left)}px, ${Math.max(4, top)}px)`;
  }

  #frame(element, at) {
    const [x, y, width, height] = this.view.box(at);
    element.style.transform = `translate(${x}px, ${y}px)`;
    element.style.width = `${Math.max(2, width)}px`;
    element.style.height = `${Math.max(2, height)}px`;
  }

  #render() {
    if (!this.isShown || this.view.count === 0) return;
    const { view, canvas, fleet } = this;
    const { context } = fitCanvas(canvas, view.width, view.height);
    const all = this.stale === null;
    if (all) {
      this.fastest = fleet.fastest;
      context.clearRect(0, 0, view.width, view.height);
      this.#drawCells(context, this.#idsInView());
      this.#placeTiles();
      this.#tell();
      this.onLegend(this.by, this.colours, this.fastest);
    } else this.#drawCells(context, this.stale);
    this.stale = new Set();

    this.mark.hidden = document.activeElement !== canvas;
    this.#frame(this.mark, this.cursor);
    const speed = this.fleet.mips[this.cursor];
    const place = `${fleet.name(this.cursor)}, ${fleet.stateName(this.cursor)}, ${format.mips(speed)} MIPS`;
    const label = `Map of ${fleet.count} VMs. ${place}.`;
    if (canvas.getAttribute("aria-label") !== label) canvas.setAttribute("aria-label", label);
  }

  *#idsInView() {
    const [left, right, top, bottom] = this.view.inView();
    for (let row = top; row < bottom; row += 1) {
      for (let column = left; column < right; column += 1) {
        const id = row * this.view.columns + column;
        if (id < this.view.count) yield id;
      }
    }
  }

  /** Draws cells grouped by colour, because setting a colour costs more than drawing a cell. */
  #drawCells(context, ids) {
    const { fleet, view, by, colours, isMatch } = this;
    if (view.cell >= TILED) return; // tiles cover them
    const buckets = new Map();
    for (const id of ids) {
      const bright = isMatch(id);
      const key = by === "mips" ? colours.speeds[step(fleet.mips[id], this.fastest)] : colours.states[fleet.states[id]];
      const name = bright ? key : "";
      const bucket = buckets.get(name);
      if (bucket) bucket.push(id);
      else buckets.set(name, [id]);
    }
    for (const [name, bucket] of buckets) {
      context.fillStyle = name || colour("map-none");
      for (const id of bucket) {
        const [x, y, width, height] = view.box(id);
        if (x < view.width && y < view.height && x > -width && y > -height) context.fillRect(x, y, width, height);
      }
    }
    if (view.cell >= NUMBERED) for (const bucket of buckets.entries()) this.#label(context, bucket);
  }

  #label(context, [name, ids]) {
    const { fleet, view } = this;
    const isLarge = view.cell >= DETAILED;
    context.fillStyle = name ? inkOn(name) : colour("dim");
    context.textBaseline = "top";
    context.font = `500 ${isLarge ? 12 : 10}px "Plex Mono", monospace`;
    for (const id of ids) {
      const [x, y, width, height] = view.box(id);
      context.fillText(isLarge ? fleet.name(id) : String(id), x + 4, y + 4, width - 6);
      if (isLarge) {
        context.fillText(`${format.mips(fleet.mips[id])} MIPS`, x + 4, y + 20, width - 6);
        if (height > 50) context.fillText(fleet.stateName(id), x + 4, y + 36, width - 6);
      }
    }
  }

  /** Puts tiles over the cells in view if these are large enough. */
  #placeTiles() {
    const { view, layer } = this;
    const wanted = new Set(view.cell >= TILED ? this.#idsInView() : []);
    for (const at of this.tiles.keys()) if (!wanted.has(at)) this.#dropTile(at);
    if (wanted.size === 0) return;
    const { pageWidth } = SIZES.regular;
    layer.style.setProperty("--page-width", `${pageWidth}px`);
    layer.style.setProperty("--page-scale", (view.cell - view.gap - 2) / pageWidth);
    for (const at of wanted) {
      let tile = this.tiles.get(at);
      if (!tile) {
        tile = this.spare.pop() ?? new Tile(this.fleet, this.pages);
        this.tiles.set(at, tile);
        tile.bind(at);
        layer.append(tile.element);
      }
      const [x, y, width, height] = view.box(at);
      tile.place(x, y, width, height);
    }
  }

  #dropTile(at) {
    const tile = this.tiles.get(at);
    this.tiles.delete(at);
    tile.release();
    tile.element.remove();
    this.spare.push(tile);
  }
}

const inks = new Map();

/** Returns black or white, whichever has more contrast with that colour. */
function inkOn(name) {
  let ink = inks.get(name);
  if (!ink) {
    const [r, g, b] = name.startsWith("#")
      ? [1, 3, 5].map((at) => parseInt(name.slice(at, at + 2), 16))
      : name.match(/\d+/g).map(Number);
    ink = 0.299 * r + 0.587 * g + 0.114 * b > 120 ? "#0b0f12" : "#f2f5f7";
    inks.set(name, ink);
  }
  return ink;
}
