// What the page knows about the fleet: a few numbers a VM, in flat arrays, so that
// 32,000 VMs cost no more than their numbers.

export const STATES = ["booting", "ready", "paused", "halted", "faulted", "stopped"];
export const [BOOTING, READY, PAUSED, HALTED, FAULTED, STOPPED] = STATES.keys();

/** VMs above this number are no VMs: a server that says otherwise is wrong. */
const MOST = 1 << 20;

export class Fleet {
  constructor() {
    /** The newest `Fleet` of the API. */
    this.info = null;
    this.clear();
    this.onInfo = () => {};
    /** Called at most once a frame, with a set of VMs. */
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
    /** The same, at least 1 and falling slowly: what tiles measure themselves by. */
    this.peak = 1;
    this.changed = new Set();
  }

  name(id) {
    return `vm${id}`;
  }

  stateName(id) {
    return STATES[this.states[id]];
  }

  /** Takes an event `fleet`. */
  takeInfo(info) {
    // A server that started anew has another fleet behind the same address.
    const anew = this.info && (info.uptime_seconds < this.info.uptime_seconds - 1 || info.count < this.count);
    if (anew) this.clear();
    this.info = info;
    this.onInfo(info, Boolean(anew));
  }

  /** Takes an event `vms`: rows of id, state, MIPS, packets in and out. */
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
