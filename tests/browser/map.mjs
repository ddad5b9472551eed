// Checks with two thousand small guests: the map, zooming into tiles, colours.

import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { open } from "./browser.mjs";
import { assert, check, findings, until } from "./check.mjs";
import { Fleet, smallKernel } from "./pxvm.mjs";

const COUNT = 2000;
/** Largest number of elements of the page: a few hundred, though there are 2,000 VMs. */
const ELEMENTS_MOST = 700;

/** Moves the keyboard cursor to a VM's cell. Returns the position of the mark around it on the page. */
async function cellOf(page, id) {
  await page.locator(".map canvas").focus();
  await page.keyboard.press("Home");
  for (let at = 0; at < id; at += 1) await page.keyboard.press("ArrowRight");
  await until("the mark", async () => ((await label(page)) ?? "").includes(` vm${id},`));
  return page.locator(".map-mark.cursor").boundingBox();
}

const label = (page) => page.locator(".map canvas").getAttribute("aria-label");

/** Returns the colour in the middle of a box on the map. */
const colourAt = (page, box) =>
  page.evaluate(({ x, y, width, height }) => {
    const canvas = document.querySelector(".map canvas");
    const at = canvas.getBoundingClientRect();
    const scale = canvas.width / at.width;
    const point = [(x + width / 2 - at.left) * scale, (y + height / 2 - at.top) * scale];
    return [...canvas.getContext("2d").getImageData(...point.map(Math.floor), 1, 1).data].join(" ");
  }, box);

export async function map(pxvm, browser) {
  const folder = mkdtempSync(join(tmpdir(), "pxvm-kernel-"));
  const kernel = smallKernel(folder);
  const args = ["--count", String(COUNT), "--kernel", kernel, "--memory", "8M", "--net", "none"];
  const fleet = await Fleet.start(pxvm, args);
  const { context, page, wrong } = await open(browser, fleet);
  try {
    await check(`${COUNT} VMs are a map`, async () => {
      await page.locator(".map canvas").waitFor();
      await until("the number of VMs", async () => ((await label(page)) ?? "").startsWith(`Map of ${COUNT} VMs`));
      await page.locator("#states button[data-value=ready] .number", { hasText: "2,000" }).waitFor();
      assert.equal(await page.locator(".tile").count(), 0);
      const elements = await page.evaluate(() => document.querySelectorAll("*").length);
      assert.ok(elements < ELEMENTS_MOST, `${elements} elements`);
    });
    await check("a VM that stops changes its cell's colour, and no other's", async () => {
      const [box, other] = [await cellOf(page, 5), await cellOf(page, 7)];
      const before = await colourAt(page, box);
      assert.equal(await colourAt(page, other), before);
      await fleet.post("/vms/5/stop");
      await until("another colour", async () => (await colourAt(page, box)) !== before);
      assert.equal(await colourAt(page, other), before);
      await page.locator("#states button[data-value=stopped] .number", { hasText: /^1$/ }).waitFor();
    });
    await check("a filter keeps only what matches bright", async () => {
      const box = await cellOf(page, 7);
      const before = await colourAt(page, box);
      await page.locator("#search").fill("100-1999");
      await until("a faint cell", async () => (await colourAt(page, box)) !== before);
      await page.locator("#search").fill("");
      await until("the cell as before", async () => (await colourAt(page, box)) === before);
    });
    await check("a name means one VM, not all whose names begin so", async () => {
      await page.locator("#search").fill("vm1");
      await page.locator('.tiles .tile[data-id="1"]').waitFor();
      assert.equal(await page.locator(".tiles .tile").count(), 1);
      assert.equal(await page.locator("#target option:checked").innerText(), "the 1 shown");
      await page.locator("#search").fill("4-6 17");
      await page.locator('.tiles .tile[data-id="17"]').waitFor();
      assert.equal(await page.locator(".tiles .tile").count(), 4);
      await page.locator("#search").fill("");
    });
    await check("few matches are tiles", async () => {
      await page.locator("#states button[data-value=stopped]").click();
      await page.locator('.tiles .tile[data-id="5"]').waitFor();
      await page.locator('#states button[data-value=""]').click();
      await page.locator(".map canvas").waitFor();
    });
    await check("colours by speed", async () => {
      await page.locator("#colours button[data-value=mips]").click();
      await page.locator("#legend", { hasText: "MIPS" }).waitFor();
      await page.locator("#colours button[data-value=state]").click();
    });
    await check("a click zooms into tiles, a click there leads to the VM", async () => {
      const box = await cellOf(page, 64);
      await page.mouse.click(box.x + box.width / 2, box.y + box.height / 2);
      const tile = page.locator('.map .tile[data-id="64"]');
      await tile.waitFor();
      assert.ok((await page.locator(".map .tile").count()) < 60);
      await tile.click();
      await page.locator("#detail h2", { hasText: "vm64" }).waitFor();
      await page.keyboard.press("Escape");
      await tile.waitFor();
    });
    await check("the wheel and the keys zoom, 0 shows all", async () => {
      await page.locator(".map canvas").focus();
      await page.keyboard.press("0");
      await until("no tiles", async () => (await page.locator(".map .tile").count()) === 0);
      await page.mouse.move(600, 400);
      for (let turn = 0; turn < 4; turn += 1) await page.mouse.wheel(0, -400);
      await until("tiles", async () => (await page.locator(".map .tile").count()) > 0);
      await page.locator(".map canvas").focus();
      await page.keyboard.press("0");
      await until("no tiles", async () => (await page.locator(".map .tile").count()) === 0);
    });
    await check("axe finds nothing serious on the map", async () => assert.deepEqual(await findings(page), []));
    await check("all as tiles, scrolled to the end", async () => {
      await page.locator("#views button[data-value=tiles]").click();
      await page.locator('.tiles .tile[data-id="0"]').waitFor();
      await page.evaluate(() => (document.querySelector(".tiles").scrollTop = 1e9));
      await page.locator(`.tiles .tile[data-id="${COUNT - 1}"]`).waitFor();
      assert.ok((await page.locator(".tiles .tile").count()) < 100);
    });
    await check("no errors in the browser's console with the map", () => assert.deepEqual(wrong.errors, []));
    await check("no request leaves the host with the map", () => assert.deepEqual(wrong.outside, []));
  } finally {
    await context.close();
    await fleet.end();
    rmSync(folder, { recursive: true, force: true });
  }
}
