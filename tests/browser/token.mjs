// Checks with two fleets that require a token: a guest, and another program at a port of the
// same host, never see the token.

import { createServer } from "node:http";
import { open } from "./browser.mjs";
import { assert, check, findings, until } from "./check.mjs";
import { Fleet } from "./pxvm.mjs";

const TOKENS = ["the-token-of-the-first-fleet", "the-token-of-the-second"];
const EVIL = ["pxvm_token=evil; Path=/", "pxvm=evil; Path=/", "token=evil; Path=/"];

/** Starts a server at a port of this host that keeps the requests it gets, and sets cookies. */
async function listener() {
  const heard = [];
  const server = createServer((request, response) => {
    heard.push(`${request.method} ${request.url}\n${request.rawHeaders.join("\n")}`);
    response.setHeader("set-cookie", EVIL);
    response.end("<!doctype html><title>listener</title><p>listener");
  });
  await new Promise((done) => server.listen(0, "127.0.0.1", done));
  return { heard, port: server.address().port, end: () => server.close() };
}

/** Returns a port that was free a moment ago. */
async function freePort() {
  const { port, end } = await listener();
  end();
  return port;
}

/** A server in a guest that prints its requests on the console, and sets a cookie. */
const RECORDER =
  "printf 'HTTP/1.1 200 OK\\r\\nSet-Cookie: pxvm_token=guest; Path=/\\r\\nContent-Length: 5\\r\\n" +
  "Connection: close\\r\\n\\r\\nguest' > /run/answer; while :; do nc -l -p 81 < /run/answer; done &";

const isLive = (page) => page.locator("#link", { hasText: "live" }).waitFor();
const tileText = async (page, id) => {
  const shown = page.locator(`.tile[data-id="${id}"] iframe:not(.coming)`).last();
  const frame = await shown.elementHandle({ timeout: 20_000 });
  return (await frame.contentFrame())?.locator("body").innerText({ timeout: 5000 });
};
const hasPage = (page, id) =>
  until(`vm${id}'s page`, async () => (await tileText(page, id).catch(() => ""))?.startsWith(`vm${id}\n`));

export async function token(pxvm, browser) {
  const other = await listener();
  const base = await freePort();
  const args = ["--count", "1", "--token"];
  const fleet = await Fleet.start(pxvm, [...args, TOKENS[0], "--publish", `${base}:81`]);
  const second = await Fleet.start(pxvm, [...args, TOKENS[1]]);
  const { context, page, wrong } = await open(browser, fleet);
  /** Every request of the browser: its URL and headers. */
  const requests = [];
  context.on("request", (request) => requests.push(request));
  try {
    await check("the printed address signs in, and the token is not in it any more", async () => {
      await isLive(page);
      await hasPage(page, 0);
      assert.equal(page.url(), new URL("/", fleet.url).href);
      const session = await context.newCDPSession(page);
      const { entries } = await session.send("Page.getNavigationHistory");
      for (const { url } of entries) assert.ok(!url.includes(TOKENS[0]), url);
      assert.deepEqual(await context.cookies(), []);
    });
    await check("a console can be written to with the token", async () => {
      await page.evaluate(() => (location.hash = "#/vm/0"));
      await page.locator(".console-view").click();
      const screen = page.locator(".xterm-accessibility-tree");
      await until("a prompt", async () => (await screen.innerText()).includes("PXVM"));
      await page.keyboard.type("echo a$((40 + 2))b\n");
      await until("an echo", async () => (await screen.innerText()).includes("a42b"));
    });
    await check("a guest's page has its styles and pictures", async () => {
      const css = "printf 'h1{color:rgb(1,2,3)}' > /run/www/s.css";
      const html = "echo '<link rel=stylesheet href=s.css><h1>styled' > /run/www/t.html";
      await fleet.post("/input", { line: `${css}; ${html}` });
      await page.locator(".where").fill(":80/t.html");
      await page.locator(".where").press("Enter");
      await until("the style", async () => {
        const frame = await page.locator(".page-view iframe:not(.coming)").last().elementHandle();
        const heading = (await frame?.contentFrame())?.locator("h1");
        return (await heading?.evaluate((h1) => getComputedStyle(h1).color).catch(() => "")) === "rgb(1, 2, 3)";
      });
      const tab = await context.newPage();
      await tab.goto(await page.locator("a", { hasText: "Open in a tab" }).evaluate((link) => link.href));
      await tab.locator("h1", { hasText: "styled" }).waitFor();
      await tab.close();
      assert.deepEqual(wrong.errors, []);
    });
    await check("no guest gets the token, nor another program at a port of this host", async () => {
      await fleet.post("/input", { line: RECORDER });
      const [link] = (await fleet.get("/vms/0")).published;
      assert.ok(link.startsWith(`127.0.0.1:${base}->`));
      const [tab] = await Promise.all([
        context.waitForEvent("page"),
        page.locator(".facts a", { hasText: `127.0.0.1:${base}` }).click(),
      ]);
      await tab.locator("body", { hasText: "guest" }).waitFor();
      await tab.goto(`http://127.0.0.1:${other.port}/`);
      await tab.goto(`http://localhost:${other.port}/again`);
      await tab.goto(`http://127.0.0.1:${other.port}/again`);
      await tab.close();
      const guest = await fleet.console(0);
      assert.match(guest, /GET \/ HTTP\/1.1\s+Host: 127.0.0.1/);
      const all = [guest, ...other.heard].join("\n");
      assert.ok(other.heard.length >= 3);
      // The guest's own cookie is sent, because cookies go to all ports; the dashboard's would be, too.
      assert.match(all, /pxvm_token=guest/);
      for (const secret of TOKENS) assert.ok(!all.includes(secret), all);
      const ours = new URL(fleet.url).host;
      assert.ok(!all.includes(ours) && !/authorization/i.test(all), all);
    });
    await check("cookies of guests do not sign anybody out", async () => {
      await page.evaluate(() => (location.hash = "#/"));
      await page.reload();
      await isLive(page);
      await hasPage(page, 0);
      const names = (await context.cookies()).map(({ name }) => name);
      assert.ok(names.includes("pxvm_token"), String(names));
    });
    await check("two fleets do not sign each other out", async () => {
      const tab = await context.newPage();
      await tab.goto(second.url);
      await isLive(tab);
      await hasPage(tab, 0);
      await page.reload();
      await isLive(page);
      await hasPage(page, 0);
      await tab.reload();
      await isLive(tab);
      await tab.close();
    });
    await check("`/?token=` signs in, too, and is taken out of the address", async () => {
      const tab = await context.newPage();
      await tab.goto(new URL(`/?token=${TOKENS[0]}#/vm/0`, fleet.url).href);
      await isLive(tab);
      assert.equal(tab.url(), new URL("/#/vm/0", fleet.url).href);
      await tab.close();
    });
    await check("a tab without the token asks for it", async () => {
      const tab = await context.newPage();
      await tab.goto(new URL("/", fleet.url).href);
      const [field, sheet] = [tab.locator("#token"), tab.locator("#sign-in")];
      await field.waitFor();
      assert.deepEqual(await findings(tab), []);
      await field.fill("not-the-token-of-this-fleet");
      await field.press("Enter");
      await sheet.locator("[role=alert]", { hasText: "not the token" }).waitFor();
      await field.fill(TOKENS[0]);
      await field.press("Enter");
      await isLive(tab);
      await sheet.waitFor({ state: "hidden" });
      assert.ok(await tab.locator("#banner").isHidden());
      await tab.close();
    });
    await check("no address that is asked for has the token", () => {
      const own = new URL(fleet.url).host;
      assert.ok(requests.some((request) => new URL(request.url()).host === own));
      // The check above has sent it once on purpose.
      const asked = requests.filter((request) => !request.url().includes("/?token="));
      for (const url of asked.map((request) => request.url().split("#")[0])) {
        for (const secret of TOKENS) assert.ok(!url.includes(secret), url);
      }
    });
  } finally {
    await context.close();
    await fleet.end();
    await second.end();
    other.end();
  }
}
