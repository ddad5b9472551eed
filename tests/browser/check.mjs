// Runs checks, prints a line for each, and counts them.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { setTimeout as sleep } from "node:timers/promises";

const WAIT_MS = 60_000;
const AXE = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

export const sums = { passed: 0, failed: 0 };

let recover = async () => {};

/** Sets a function that is called with the name of each check that failed. */
export const afterFailure = (body) => {
  recover = body;
};

/** Runs a check. If it fails, the next ones run all the same. */
export async function check(name, body) {
  try {
    await body();
    sums.passed += 1;
    console.log(`ok      ${name}`);
  } catch (error) {
    sums.failed += 1;
    console.log(`FAILED  ${name}\n        ${String(error?.stack ?? error).replaceAll("\n", "\n        ")}`);
    await recover(name).catch(() => {});
  }
}

/** Waits until `probe` returns something true, and returns that. */
export async function until(what, probe) {
  const end = Date.now() + WAIT_MS;
  for (;;) {
    const value = await probe();
    if (value) return value;
    if (Date.now() > end) throw new Error(`Never came: ${what}`);
    await sleep(100);
  }
}

/** Returns serious and critical findings of axe. Guests' pages are left out, because they are not ours. */
export async function findings(page) {
  // Evaluated directly, because the Content-Security-Policy refuses a script element.
  await page.evaluate(AXE);
  const { violations } = await page.evaluate(() => window.axe.run(document, { iframes: false }));
  return violations
    .filter(({ impact }) => impact === "serious" || impact === "critical")
    .map(({ id, nodes }) => `${id}: ${nodes.map(({ html, any }) => `${html} ${any[0]?.message ?? ""}`).join(" | ")}`);
}

export { assert, sleep };
