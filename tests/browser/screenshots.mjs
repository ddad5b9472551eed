// Takes the screenshots of the guide. tests/browser/screenshots.sh starts this program.

import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { launch, open } from "./browser.mjs";
import { until } from "./check.mjs";
import { Fleet } from "./pxvm.mjs";

const [pxvm, folder] = process.argv.slice(2);
const browser = await launch();
const DESKTOP = { viewport: { width: 1440, height: 900 } };
const PHONE = { width: 390, height: 844, deviceScaleFactor: 0, mobile: false };

const shoot = (page, name) => page.screenshot({ path: join(folder, `dashboard-${name}.png`) });
/** Waits until all pages in view are loaded. */
const pagesLoaded = (page, least) =>
  until("pages in tiles", async () => (await page.locator(".tile-page iframe:not(.coming)").count()) >= least);

async function withPage(fleet, options, body) {
  const { context, page } = await open(browser, fleet, options);
  await body(page);
  await context.close();
}

/** Takes pictures of twenty-four VMs, some of which have work to do. */
async function small() {
  const fleet = await Fleet.start(pxvm, ["--count", "24", "--capacity", "32", "--name", "lab", "--publish", "4000:80"]);
  await until("ready", async () => (await fleet.get("/fleet")).states.ready === 24);
  await fleet.post("/input", { line: "while :; do :; done &", vms: [2, 9, 15] });
  await fleet.post("/input", { line: "while :; do sleep 0.02; done &", vms: [4, 7, 12, 18] });
  await fleet.post("/vms/17/stop");
  await fleet.post("/vms/3/reset");
  await until("vm3 ready again", async () => (await fleet.get("/vms/3")).state === "ready");
  await withPage(fleet, DESKTOP, async (page) => {
    await pagesLoaded(page, 20);
    await fleet.post("/vms/10/pause");
    await sleep(20_000);
    await shoot(page, "grid");
    await page.evaluate(() => (location.hash = "#/vm/3"));
    await page.locator(".page-view iframe:not(.coming)").first().waitFor();
    await page.locator(".console-view").click();
    for (const line of ["uname -a", "cat /proc/cpuinfo", "free", "ps | grep nginx"]) {
      await page.keyboard.type(`${line}\n`);
      await sleep(1500);
    }
    await sleep(10_000);
    await shoot(page, "detail");
  });
  await withPage(fleet, { ...DESKTOP, colorScheme: "light" }, async (page) => {
    await pagesLoaded(page, 20);
    await sleep(3000);
    await shoot(page, "light");
  });
  await phone(fleet);
  await fleet.end();
}

/**
 * Starts a browser with a screen of twice the density. Emulated density would not apply to
 * guests' pages, which would be blurred.
 */
async function phone(fleet) {
  const dense = await launch(["--force-device-scale-factor=2"]);
  const { context, page } = await open(dense, fleet, { viewport: null });
  const session = await context.newCDPSession(page);
  await session.send("Emulation.setDeviceMetricsOverride", PHONE);
  await pagesLoaded(page, 4);
  await sleep(5000);
  const { data } = await session.send("Page.captureScreenshot", { format: "png" });
  writeFileSync(join(folder, "dashboard-phone.png"), Buffer.from(data, "base64"));
  await dense.close();
}

/** Takes pictures of a thousand VMs while they boot and when they are ready. */
async function large() {
  const count = 1000;
  const fleet = await Fleet.start(pxvm, ["--count", String(count), "--name", "thousand"]);
  const waitFor = async (least) => {
    for (let turn = 0; turn < 600; turn += 1) {
      if ((await fleet.get("/fleet")).states.ready >= least) return;
      await sleep(500);
    }
    throw new Error(`${least} VMs never were ready`);
  };
  await withPage(fleet, DESKTOP, async (page) => {
    await waitFor(count * 0.55);
    await page.mouse.move(700, 420);
    await sleep(500);
    await shoot(page, "map");
    await waitFor(count);
    // Gives some VMs much work, some little, and most of them none.
    const ids = Array.from({ length: count }, (_, id) => id);
    const share = (id) => (Math.imul(id + 1, 2654435761) >>> 0) / 2 ** 32;
    for (const [pause, from, to] of [[0.05, 0, 0.004], [0.2, 0.1, 0.112], [0.5, 0.3, 0.32], [1, 0.5, 0.54]]) {
      const vms = ids.filter((id) => share(id) >= from && share(id) < to);
      await fleet.post("/input", { line: `while :; do sleep ${pause}; done &`, vms });
    }
    await sleep(15_000);
    await page.locator("#colours button[data-value=mips]").click();
    await page.mouse.move(5, 5);
    await sleep(3000);
    await shoot(page, "speed");
  });
  await fleet.end();
}

try {
  await small();
  await large();
} finally {
  await browser.close();
}
