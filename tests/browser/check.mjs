// Checks, one line each, and their sum.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { setTimeout as sleep } from "node:timers/promises";

const WAIT_MS = 60_000;
const AXE = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

export const sums = { passed: 0, failed: 0 };

let recover = async () => {};

/** What to do after a check that failed; it hears the check's name. */
export const afterFailure = (body) => {
  recover = body;
};

/** One thing that must hold. A check that fails leaves the next ones their chance. */
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

/** Waits until `probe` gives something true, and gives that. */
export async function until(what, probe) {
  const end = Date.now() + WAIT_MS;
  for (;;) {
    const value = await probe();
    if (value) return value;
    if (Date.now() > end) throw new Error(`Never came: ${what}`);
    await sleep(100);
  }
}

/** What axe finds that is serious or worse. Guests' pages are not ours to judge. */
export async function findings(page) {
  // Not by a script element, which the page's policy would refuse.
  await page.evaluate(AXE);
  const { violations } = await page.evaluate(() => window.axe.run(document, { iframes: false }));
  return violations
    .filter(({ impact }) => impact === "serious" || impact === "critical")
    .map(({ id, nodes }) => `${id}: ${nodes.map(({ html, any }) => `${html} ${any[0]?.message ?? ""}`).join(" | ")}`);
}

export { assert, sleep };
