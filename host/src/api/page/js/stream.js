// The one stream of events for the whole page, and what to do when it ends.

import * as api from "./api.js";

/** Seconds between attempts. */
const WAITS = [1, 2, 3, 5];
/** The server says something at least every 5 s; comments do not reach us. */
const SILENCE = 15_000;

/**
 * Follows the fleet's events for ever. `onLink(state, text)` hears how it goes:
 * "live", "wait" (the first connection), or "lost".
 */
export function follow(fleet, onLink) {
  let source;
  let failures = 0;
  let heard = 0;

  const connect = () => {
    source = api.events();
    const take = (kind, handle) =>
      source.addEventListener(kind, (event) => {
        heard = performance.now();
        if (failures !== 0 || kind === "open") onLink("live", "live");
        failures = 0;
        if (event.data) handle(JSON.parse(event.data));
      });
    take("open", () => {});
    take("fleet", (info) => fleet.takeInfo(info));
    take("vms", ({ vms }) => fleet.takeVms(vms));
    source.addEventListener("error", () => lose());
  };

  const lose = async () => {
    source.close();
    const wait = WAITS[Math.min(failures, WAITS.length - 1)];
    failures += 1;
    let reason = "The server went away.";
    try {
      await api.fleet();
      reason = "The stream of events ended.";
    } catch (error) {
      if (error.status === 401) {
        onLink("lost", "This server wants its token: open the address that pxvm printed.");
        return;
      }
      if (error.status > 0) reason = error.message;
    }
    onLink("lost", `${reason} What you see is old; trying again every ${wait} s.`);
    setTimeout(connect, wait * 1000);
  };

  onLink("wait", "connecting");
  connect();

  // A connection can die without a word, as when a laptop sleeps.
  setInterval(async () => {
    if (source.readyState !== EventSource.OPEN || performance.now() - heard < SILENCE) return;
    const alive = await api.isAlive().catch(() => false);
    heard = performance.now();
    if (!alive && source.readyState === EventSource.OPEN) lose();
  }, SILENCE / 3);
}
