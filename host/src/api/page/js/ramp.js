// Colours of the map: one for each state, or a ramp from slow to fast.

import { colour } from "./dom.js";
import { READY, STATES } from "./tables.js";

const STEPS = 64;
/** Colours from the background to the fastest. Neighbours differ in lightness. */
const RAMPS = {
  dark: ["#181e24", "#1c3f52", "#1d6a76", "#3f9c86", "#96cc7a", "#f2eea6"],
  light: ["#e3e7ea", "#bcdcd8", "#84c3ae", "#46a07f", "#236f63", "#123f48"],
};

const channels = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));

function between(from, to, share) {
  const [a, b] = [channels(from), channels(to)];
  return `rgb(${a.map((value, at) => Math.round(value + (b[at] - value) * share)).join(" ")})`;
}

/** Returns the colours of the current theme: `states`, and `speeds` from zero to the fastest. */
export function palette() {
  const stops = RAMPS[document.documentElement.dataset.theme] ?? RAMPS.dark;
  const speeds = Array.from({ length: STEPS }, (_, step) => {
    const at = (step / (STEPS - 1)) * (stops.length - 1);
    const stop = Math.min(Math.floor(at), stops.length - 2);
    return between(stops[stop], stops[stop + 1], at - stop);
  });
  // Most VMs of a fleet are ready or boot. Their colours are muted, so that the others stand out.
  const states = STATES.map((state, index) => colour(index <= READY ? `map-${state}` : state));
  return { states, speeds };
}

/** Returns the index of a speed on the ramp. It is on a square-root scale, so that slow VMs differ as well. */
export const step = (mips, fastest) =>
  fastest > 0 ? Math.min(STEPS - 1, Math.round(Math.sqrt(mips / fastest) * (STEPS - 1))) : 0;
