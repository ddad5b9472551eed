// The browser for the tests, and what is wrong with a page wherever it happens.

import { execFileSync } from "node:child_process";
import { chromium } from "playwright-core";

const FLAGS = [
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];
/**
 * The guest's page renews itself by a meta element. A frame without rights may not,
 * and Chromium says so; the page renews it instead.
 */
const EXPECTED = /^Refused to execute the redirect specified via '<meta http-equiv='refresh'/;

export const launch = () =>
  chromium.launch({
    executablePath: execFileSync("/bin/sh", ["-c", 'command -v "$0"', process.env.PXVM_CHROMIUM ?? "chromium"], {
      encoding: "utf8",
    }).trim(),
    args: FLAGS,
  });

/** A page at the fleet's dashboard, and lists of what should not be. */
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
    if (message.type() === "error" && !EXPECTED.test(message.text())) wrong.errors.push(message.text());
  });
  page.on("pageerror", (error) => wrong.errors.push(error.stack ?? String(error)));
  await page.goto(fleet.url);
  return { context, page, wrong };
}
