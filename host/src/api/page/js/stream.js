// The event stream of the page, with reconnection.

import * as api from "./api.js";
import * as auth from "./auth.js";

/** Seconds before each attempt to reconnect; the last one repeats. */
const WAITS = [1, 2, 3, 5];
/** Time without an event after which the connection is dead. The server sends one every 5 s. */
const SILENCE = 15_000;

const sleep = (seconds) => new Promise((done) => setTimeout(done, seconds * 1000));

/**
 * Follows the fleet's events for ever. Calls `onLink(state, text)` when the state of the
 * connection changes: "live", "wait" (for the first connection) or "lost".
 */
export async function follow(fleet, onLink) {
  const takes = { fleet: (info) => fleet.takeInfo(info), vms: ({ vms }) => fleet.takeVms(vms) };
  let failures = 0;

  /** Handles events until the stream ends. Returns the error that ended it. */
  const listen = async () => {
    const silence = new AbortController();
    let timer = 0;
    const heard = () => {
      clearTimeout(timer);
      timer = setTimeout(() => silence.abort(), SILENCE);
    };
    let isLive = false;
    heard();
    try {
      for await (const [kind, data] of api.events(silence.signal)) {
        heard();
        if (!isLive) onLink("live", "live");
        isLive = true;
        failures = 0;
        try {
          takes[kind]?.(data);
        } catch (error) {
          reportError(error);
        }
      }
      return { message: "The stream of events ended." };
    } catch (error) {
      return error.status > 0 ? error : { message: "The server went away." };
    } finally {
      clearTimeout(timer);
    }
  };

  onLink("wait", "connecting");
  for (;;) {
    const { status, message } = await listen();
    api.forgetTickets();
    if (status === 401) {
      onLink("lost", "This server wants its token.");
      await auth.ask();
      continue;
    }
    const wait = WAITS[Math.min(failures, WAITS.length - 1)];
    failures += 1;
    onLink("lost", `${message} What you see is old; trying again every ${wait} s.`);
    await sleep(wait);
  }
}
