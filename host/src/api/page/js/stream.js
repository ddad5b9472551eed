// The one stream of events for the whole page, and what to do when it ends.

import * as api from "./api.js";
import * as auth from "./auth.js";

/** Seconds between attempts. */
const WAITS = [1, 2, 3, 5];
/** The server says something at least every 5 s. A connection can die without a word, as when a laptop sleeps. */
const SILENCE = 15_000;

const sleep = (seconds) => new Promise((done) => setTimeout(done, seconds * 1000));

/**
 * Follows the fleet's events for ever. `onLink(state, text)` hears how it goes:
 * "live", "wait" (the first connection), or "lost".
 */
export async function follow(fleet, onLink) {
  const takes = { fleet: (info) => fleet.takeInfo(info), vms: ({ vms }) => fleet.takeVms(vms) };
  let failures = 0;

  /** Listens until the stream ends; what it ended by. */
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
