// What the page knows about the fleet: a few numbers for each VM, in typed arrays, so that
// 32,000 VMs need little memory.

import { FAULTED, STATES } from "./tables.js";

/** Largest number of VMs. Rows with higher numbers are ignored as errors of the server. */
const MOST = 1 << 20;

export class Fleet {
  constructor() {
    /** The latest `Fleet` that the API sent. */
    this.info = null;
    this.clear();
    this.onInfo = () => {};
    /** Called with the set of VMs that changed, at most once per animation frame. */
    this.onVms = () => {};
  }

  clear() {
    this.count = 0;
    this.room = 0;
    this.states = new Uint8Array(0);
    this.mips = new Float32Array(0);
    this.rx = new Float64Array(0);
    this.tx = new Float64Array(0);
    this.fastest = 0;
    /** The same, but at least 1 and falling slowly: the scale for the bars of tiles. */
    this.peak = 1;
    this.changed = new Set();
  }

  name(id) {
    return `vm${id}`;
  }

  stateName(id) {
    return STATES[this.states[id]];
  }

  /** Handles an event `fleet`. */
  takeInfo(info) {
    // A server that was started again has another fleet at the same address.
    const anew = this.info && (info.uptime_seconds < this.info.uptime_seconds - 1 || info.count < this.count);
    if (anew) this.clear();
    this.info = info;
    this.onInfo(info, Boolean(anew));
  }

  /** Handles an event `vms`: rows of number, state, MIPS, packets received and sent. */
  takeVms(rows) {
    const waiting = this.changed.size > 0;
    for (const [id, state, mips, rx, tx] of rows) {
      if (!(id >= 0 && id < MOST)) continue;
      if (id >= this.room) this.#grow(id + 1);
      if (id >= this.count) this.count = id + 1;
      this.states[id] = state < STATES.length ? state : FAULTED;
      this.mips[id] = mips;
      this.rx[id] = rx;
      this.tx[id] = tx;
      this.changed.add(id);
    }
    if (!waiting && this.changed.size > 0) requestAnimationFrame(() => this.#tell());
  }

  #tell() {
    const changed = this.changed;
    this.changed = new Set();
    let fastest = 0;
    for (let id = 0; id < this.count; id += 1) fastest = Math.max(fastest, this.mips[id]);
    this.fastest = fastest;
    if (fastest > this.peak || fastest < this.peak * 0.7) this.peak = Math.max(1, fastest);
    this.onVms(changed);
  }

  #grow(least) {
    const room = Math.max(64, least, this.room * 2);
    const grown = (old, Kind) => {
      const array = new Kind(room);
      array.set(old);
      return array;
    };
    this.states = grown(this.states, Uint8Array);
    this.mips = grown(this.mips, Float32Array);
    this.rx = grown(this.rx, Float64Array);
    this.tx = grown(this.tx, Float64Array);
    this.room = room;
  }
}
