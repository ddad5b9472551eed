// Starts the browser, and collects errors of its pages.

import { execFileSync } from "node:child_process";
import { join } from "node:path";
import { chromium } from "playwright-core";
import { afterFailure } from "./check.mjs";

const FLAGS = [
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];
/** Messages of Chromium when it stops a hostile page. */
const REFUSED = /^Blocked script execution in /;
/** Messages about the page of a VM that stopped while the page was loading. */
const isGone = (message) =>
  message.text().startsWith("Failed to load resource") && /\/vms\/\d+\/http\//.test(message.location().url);

/** Starts a browser with these flags and those that all tests need. */
export const launch = (flags = []) =>
  chromium.launch({
    executablePath: execFileSync("/bin/sh", ["-c", 'command -v "$0"', process.env.PXVM_CHROMIUM ?? "chromium"], {
      encoding: "utf8",
    }).trim(),
    args: [...FLAGS, ...flags],
  });

/** Opens the fleet's dashboard. Returns the page, and lists of errors, which should stay empty. */
export async function open(browser, fleet, options = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 800 }, colorScheme: "dark", ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(30_000);
  const wrong = { errors: [], outside: [] };
  const { host } = new URL(fleet.url);
  context.on("request", (request) => {
    const url = new URL(request.url());
    if (url.host !== host && !["data:", "blob:", "about:"].includes(url.protocol)) wrong.outside.push(request.url());
  });
  page.on("websocket", (socket) => {
    if (new URL(socket.url()).host !== host) wrong.outside.push(socket.url());
  });
  page.on("console", (message) => {
    if (message.type() !== "error" || REFUSED.test(message.text()) || isGone(message)) return;
    wrong.errors.push(`${message.text()} (${message.location().url})`);
  });
  page.on("pageerror", (error) => wrong.errors.push(error.stack ?? String(error)));
  afterFailure(async (name) => {
    if (process.env.PXVM_BROWSER_SHOTS) {
      const file = `${name.replaceAll(/[^a-z0-9]+/gi, "-")}.png`;
      await page.screenshot({ path: join(process.env.PXVM_BROWSER_SHOTS, file) });
    }
    // Closes what a check left open, which could cover what the next one needs.
    await page.evaluate(() => document.querySelectorAll("dialog[open]").forEach((sheet) => sheet.close()));
  });
  await page.goto(fleet.url);
  return { context, page, wrong };
}
