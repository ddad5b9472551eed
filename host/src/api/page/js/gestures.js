// Turns mouse, wheel and touch events of the map into panning, zooming, pointing and clicking.

/** A press that moves less than this, in pixels, is a click. */
const SLOP = 5;

export class Gestures {
  /** `on` has the handlers `pan`, `zoom`, `point`, `leave` and `click`. */
  constructor(element, on) {
    this.element = element;
    this.on = on;
    this.pointers = new Map();
    this.isDragging = false;
    element.addEventListener("pointerdown", (event) => this.#down(event));
    element.addEventListener("pointermove", (event) => this.#move(event));
    element.addEventListener("pointerup", (event) => this.#up(event));
    element.addEventListener("pointercancel", (event) => this.#up(event));
    element.addEventListener("pointerleave", () => on.leave());
    element.addEventListener("click", (event) => this.#click(event), { capture: true });
    element.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
  }

  #at(event) {
    const box = this.element.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  #down(event) {
    if (event.button !== 0) return;
    const [x, y] = this.#at(event);
    this.pointers.set(event.pointerId, { x, y, fromX: x, fromY: y });
    if (this.pointers.size === 1) this.isDragging = false;
  }

  #move(event) {
    const [x, y] = this.#at(event);
    const pointer = this.pointers.get(event.pointerId);
    if (!pointer) {
      if (event.pointerType !== "touch") this.on.point(x, y);
      return;
    }
    if (!this.isDragging && Math.hypot(x - pointer.fromX, y - pointer.fromY) < SLOP) return;
    if (!this.isDragging) {
      this.isDragging = true;
      this.element.setPointerCapture(event.pointerId);
      this.on.leave();
    }
    const others = [...this.pointers.values()].filter((other) => other !== pointer);
    if (others.length === 1) {
      const [other] = others;
      const before = Math.hypot(pointer.x - other.x, pointer.y - other.y);
      const after = Math.hypot(x - other.x, y - other.y);
      if (before > 0) this.on.zoom(after / before, (x + other.x) / 2, (y + other.y) / 2);
      this.on.pan((x - pointer.x) / 2, (y - pointer.y) / 2);
    } else if (others.length === 0) this.on.pan(x - pointer.x, y - pointer.y);
    Object.assign(pointer, { x, y });
  }

  #up(event) {
    this.pointers.delete(event.pointerId);
  }

  #click(event) {
    if (this.isDragging) {
      // This click ends a drag, so the tile below must not receive it.
      this.isDragging = false;
      event.preventDefault();
      event.stopPropagation();
    } else if (event.target instanceof HTMLCanvasElement) this.on.click(...this.#at(event));
  }

  #wheel(event) {
    event.preventDefault();
    const lines = event.deltaMode === WheelEvent.DOM_DELTA_LINE ? 16 : 1;
    const [x, y] = this.#at(event);
    if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
      this.on.pan(-(event.deltaX || event.deltaY) * lines, 0);
    } else this.on.zoom(Math.exp(-event.deltaY * lines * 0.002), x, y);
  }
}
