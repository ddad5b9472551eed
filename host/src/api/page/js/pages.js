// The VMs' own pages in the tiles. Only VMs in view have one; each is loaded anew in
// turn, so that the whole page makes a few requests a second, however many tiles
// there are. A page is loaded behind the one that shows and takes its place when it
// is there, so nothing flickers.
//
// What a guest serves is hostile: the frame has no rights at all (`sandbox`), cannot
// be clicked or focused here (`inert`), and is never read.

import * as api from "./api.js";
import { el } from "./dom.js";
import { PAUSED, READY } from "./fleet.js";

/** Loads at a time, and the pause between two that only renew. */
const AT_ONCE = 4;
const RENEW_MS = 250;
/** A tile that scrolls by has no page. */
const STAY_MS = 150;
/** A page is not renewed more often than this. */
const LEAST_AGE_MS = 2000;
/** A guest that takes longer shows what it showed before. */
const PATIENCE_MS = 10_000;

/** A loaded page is not painted yet. */
const PAINT_MS = 120;

/** A frame for a guest's page, without any rights, behind the one that shows. */
export const guestFrame = (name) =>
  el("iframe", { class: "coming", sandbox: "", title: `Page of ${name}`, referrerPolicy: "no-referrer" });

/** Puts a loaded frame in front; the one before stays until the new one is painted. */
export function bringForward(frame, before) {
  frame.className = "";
  if (before) setTimeout(() => before.remove(), PAINT_MS);
}

export class Pages {
  constructor(fleet) {
    this.fleet = fleet;
    this.places = new Map();
    this.loading = 0;
    /** While the server is away there is nothing to load. */
    this.isHeld = false;
    setInterval(() => this.#turn(true), RENEW_MS);
  }

  /** The VM's page is to be shown in `host`, which is in view. */
  show(id, host) {
    const from = performance.now() + STAY_MS;
    this.places.set(id, { id, host, from, shown: null, coming: null, since: 0, giveUp: 0 });
    clearTimeout(this.soon);
    this.soon = setTimeout(() => this.#turn(false), STAY_MS + 10);
  }

  /** The VM is out of view. */
  hide(id) {
    const place = this.places.get(id);
    if (!place) return;
    this.#drop(place);
    this.places.delete(id);
  }

  /** The VM's state may have changed: one that does not run has no page. */
  check(id) {
    const place = this.places.get(id);
    if (!place) return;
    const state = this.fleet.states[id];
    if (state === READY) {
      if (place.since === 0) this.#turn(false);
    } else if (state !== PAUSED) this.#drop(place);
  }

  /** Whether there is a page to see. */
  has(id) {
    return Boolean(this.places.get(id)?.shown);
  }

  #drop(place) {
    this.#forget(place);
    place.shown?.remove();
    place.shown = null;
    place.since = 0;
  }

  #forget(place) {
    if (!place.coming) return;
    clearTimeout(place.giveUp);
    place.coming.remove();
    place.coming = null;
    this.loading -= 1;
  }

  #turn(mayRenew) {
    const port = this.fleet.info?.network.http_port;
    if (document.hidden || this.isHeld || !port) return;
    const now = performance.now();
    let oldest = null;
    for (const place of this.places.values()) {
      if (place.coming || place.from > now || this.fleet.states[place.id] !== READY) continue;
      if (place.since === 0) {
        if (this.loading >= AT_ONCE) return;
        this.#load(place, port);
      } else if (!oldest || place.since < oldest.since) oldest = place;
    }
    if (mayRenew && this.loading < AT_ONCE / 2 && oldest && now - oldest.since > LEAST_AGE_MS) this.#load(oldest, port);
  }

  #load(place, port) {
    const { id } = place;
    const frame = guestFrame(this.fleet.name(id));
    place.since = performance.now();
    place.coming = frame;
    this.loading += 1;
    place.giveUp = setTimeout(() => this.#forget(place), PATIENCE_MS);
    frame.addEventListener("load", () => {
      if (place.coming !== frame) return;
      clearTimeout(place.giveUp);
      this.loading -= 1;
      place.coming = null;
      bringForward(frame, place.shown);
      place.shown = frame;
      this.#turn(false);
    });
    const go = (url) => {
      if (place.coming !== frame) return;
      frame.src = url;
      place.host.append(frame);
    };
    api.pageUrl(id, port).then(go, () => place.coming === frame && this.#forget(place));
  }
}
