// A small line chart over time on a canvas, with the last value marked.

import { colour, fitCanvas, oncePerFrame } from "./dom.js";

/** Seconds from the left edge to the right edge. */
const SPAN = 120;

export class Plot {
  /** `span` is the number of seconds shown. The points are [second, value]. */
  constructor(canvas, { span = SPAN } = {}) {
    this.canvas = canvas;
    this.span = span;
    this.points = [];
    this.draw = oncePerFrame(() => this.#draw());
    new ResizeObserver(this.draw).observe(canvas);
    addEventListener("theme", this.draw);
  }

  show(points) {
    this.points = points;
    this.draw();
  }

  #draw() {
    const { context, width, height } = fitCanvas(this.canvas);
    context.clearRect(0, 0, width, height);
    if (width < 8) return;
    const [top, bottom, right] = [4, height - 1.5, width - 4];
    context.fillStyle = colour("line");
    context.fillRect(0, bottom, width, 1);
    if (this.points.length === 0) return;

    const last = this.points.at(-1)[0];
    const most = this.points.reduce((most, [, value]) => Math.max(most, value), 0) || 1;
    const x = (t) => right - ((last - t) / this.span) * right;
    const y = (value) => bottom - (value / most) * (bottom - top);
    const line = new Path2D();
    for (const [t, value] of this.points) line.lineTo(x(t), y(value));

    const area = new Path2D(line);
    area.lineTo(right, bottom);
    area.lineTo(x(this.points[0][0]), bottom);
    context.fillStyle = colour("accent");
    context.globalAlpha = 0.12;
    context.fill(area);
    context.globalAlpha = 1;
    context.strokeStyle = colour("accent");
    context.lineWidth = 1.25;
    context.lineJoin = "round";
    context.stroke(line);
    context.beginPath();
    context.arc(right, y(this.points.at(-1)[1]), 2.25, 0, 2 * Math.PI);
    context.fillStyle = colour("text");
    context.fill();
  }
}
