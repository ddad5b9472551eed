// The VMs' own pages in the tiles. Only VMs in view have one. They are reloaded in turn, so
// that the dashboard makes a few requests a second, however many tiles there are. A new page
// is loaded behind the old one and replaces it when it is loaded, so that nothing flickers.
//
// What a guest serves may be hostile: the iframe has no rights at all (`sandbox`), cannot be
// clicked or focused here (`inert`), and its content is never read.

import * as api from "./api.js";
import { el } from "./dom.js";
import { PAUSED, READY } from "./tables.js";

/** Largest number of loads at a time, and the interval at which a page is reloaded. */
const AT_ONCE = 4;
const RENEW_MS = 250;
/** Time for which a tile is in view before its page is loaded; tiles that scroll by have none. */
const STAY_MS = 150;
/** Least age of a page that is reloaded. */
const LEAST_AGE_MS = 2000;
/** Time limit of a load. After it the old page stays. */
const TIMEOUT_MS = 10_000;

/** Time that the browser needs to paint a loaded page. */
const PAINT_MS = 120;

/** Returns an iframe for a guest's page, without any rights, behind the one that shows. */
export const guestFrame = (name) =>
  el("iframe", { class: "coming", sandbox: "", title: `Page of ${name}`, referrerPolicy: "no-referrer" });

/** Puts a loaded iframe in front. The old one stays until the new one is painted. */
export function bringForward(frame, before) {
  frame.className = "";
  if (before) setTimeout(() => before.remove(), PAINT_MS);
}

export class Pages {
  constructor(fleet) {
    this.fleet = fleet;
    this.places = new Map();
    this.loading = 0;
    /** Set while the server does not respond: nothing is loaded. */
    this.isHeld = false;
    setInterval(() => this.#turn(true), RENEW_MS);
  }

  /** Shows the page of a VM in `host`, which is in view. */
  show(id, host) {
    const from = performance.now() + STAY_MS;
    this.places.set(id, { id, host, from, shown: null, coming: null, since: 0, giveUp: 0 });
    clearTimeout(this.soon);
    this.soon = setTimeout(() => this.#turn(false), STAY_MS + 10);
  }

  /** Removes the page of a VM that is out of view. */
  hide(id) {
    const place = this.places.get(id);
    if (!place) return;
    this.#drop(place);
    this.places.delete(id);
  }

  /** Loads or removes the page of a VM whose state may have changed; one that does not run has none. */
  check(id) {
    const place = this.places.get(id);
    if (!place) return;
    const state = this.fleet.states[id];
    if (state === READY) {
      if (place.since === 0) this.#turn(false);
    } else if (state !== PAUSED) this.#drop(place);
  }

  /** Whether the page of a VM is shown. */
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
    place.giveUp = setTimeout(() => this.#forget(place), TIMEOUT_MS);
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
