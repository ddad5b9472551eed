// The geometry of the map: a grid of cells, their size, and the part that is in view.

/** Ratio of a cell's height to its width: that of a tile. */
export const SHAPE = 0.85;
/** Largest width of a cell. */
const WIDEST = 480;
/** Free space around all cells. */
const MARGIN = 12;

export class View {
  constructor() {
    this.count = 0;
    this.columns = 1;
    this.width = 1;
    this.height = 1;
    /** Width of a cell with its gap, and position of the upper left corner, in CSS pixels. */
    this.cell = 1;
    this.x = 0;
    this.y = 0;
    this.isFitted = true;
  }

  get rows() {
    return Math.ceil(this.count / this.columns);
  }

  /** Sets the number of cells and the size of the window. A view of all cells stays one. */
  resize(count, width, height) {
    if (width < 1 || height < 1) return;
    const same = count === this.count && width === this.width && height === this.height;
    if (same) return;
    Object.assign(this, { count, width, height });
    if (this.isFitted) this.fit();
    else this.#clamp();
  }

  /** Shows all cells, as large as possible. */
  fit() {
    const [width, height] = this.#room();
    const ideal = Math.sqrt((this.count * width * SHAPE) / height);
    let best = { cell: 0, columns: 1 };
    // Rows of a round number of VMs are easier to read.
    const round = ideal >= 60 ? 10 : ideal >= 20 ? 5 : 1;
    for (const columns of [Math.floor(ideal / round) * round, Math.ceil(ideal / round) * round]) {
      if (columns < 1) continue;
      const rows = Math.ceil(this.count / columns);
      const cell = Math.min(width / columns, height / (rows * SHAPE), WIDEST);
      if (cell > best.cell) best = { cell, columns };
    }
    this.columns = best.columns;
    this.cell = best.cell || 1;
    this.isFitted = true;
    this.#clamp();
  }

  /** Width of a cell at which all cells are in view. */
  get least() {
    const [width, height] = this.#room();
    return Math.min(width / this.columns, height / (Math.max(1, this.rows) * SHAPE), WIDEST);
  }

  /** Zooms around the point (x, y). */
  zoom(factor, x, y) {
    const cell = Math.min(WIDEST, Math.max(this.least, this.cell * factor));
    const real = cell / this.cell;
    this.x = x - (x - this.x) * real;
    this.y = y - (y - this.y) * real;
    this.cell = cell;
    this.isFitted = cell <= this.least * 1.001;
    this.#clamp();
  }

  pan(dx, dy) {
    this.x += dx;
    this.y += dy;
    this.#clamp();
  }

  /** Returns the position of the view in which a cell of that width is in the middle. */
  centred(at, wanted) {
    const cell = Math.min(WIDEST, wanted);
    const [column, row] = [at % this.columns, Math.floor(at / this.columns)];
    return {
      cell,
      x: this.width / 2 - (column + 0.5) * cell,
      y: this.height / 2 - (row + 0.5) * cell * SHAPE,
    };
  }

  set({ cell, x, y }) {
    Object.assign(this, { cell, x, y, isFitted: cell <= this.least * 1.001 });
    this.#clamp();
  }

  /** Pans by the least distance that brings the whole cell into view. */
  reveal(at) {
    const [x, y, width, height] = this.box(at);
    const shift = (from, size, room) =>
      from < MARGIN ? MARGIN - from : from + size > room - MARGIN ? room - MARGIN - from - size : 0;
    this.pan(shift(x, width, this.width), shift(y, height, this.height));
  }

  /** Gap between two cells. */
  get gap() {
    return this.cell >= 110 ? 8 : this.cell >= 24 ? 2 : this.cell >= 3.5 ? 1 : 0;
  }

  /** Returns left, top, width and height of a cell without its gap; whole pixels where there is a gap. */
  box(at) {
    const { cell, gap } = this;
    const left = this.x + (at % this.columns) * cell;
    const top = this.y + Math.floor(at / this.columns) * cell * SHAPE;
    if (gap === 0) return [left, top, cell, cell * SHAPE];
    const [x, y] = [Math.round(left), Math.round(top)];
    return [x, y, Math.round(left + cell) - x - gap, Math.round(top + cell * SHAPE) - y - gap];
  }

  /** Returns the cell at a point, or -1. */
  at(x, y) {
    const column = Math.floor((x - this.x) / this.cell);
    const row = Math.floor((y - this.y) / (this.cell * SHAPE));
    const at = row * this.columns + column;
    return column >= 0 && column < this.columns && row >= 0 && at < this.count ? at : -1;
  }

  /** Returns the range of columns and that of rows in view. */
  inView() {
    const height = this.cell * SHAPE;
    return [
      Math.max(0, Math.floor(-this.x / this.cell)),
      Math.min(this.columns, Math.ceil((this.width - this.x) / this.cell)),
      Math.max(0, Math.floor(-this.y / height)),
      Math.min(this.rows, Math.ceil((this.height - this.y) / height)),
    ];
  }

  #room() {
    return [Math.max(1, this.width - 2 * MARGIN), Math.max(1, this.height - 2 * MARGIN)];
  }

  /** Limits panning: no edge moves further in than the margin. A smaller grid is centred. */
  #clamp() {
    const into = (offset, size, room) =>
      size <= room - 2 * MARGIN ? (room - size) / 2 : Math.min(MARGIN, Math.max(room - MARGIN - size, offset));
    this.x = into(this.x, this.columns * this.cell, this.width);
    this.y = into(this.y, this.rows * this.cell * SHAPE, this.height);
  }
}
