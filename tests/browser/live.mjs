// Checks with eight real guests: tiles, console, commands, broadcast, keys, themes, and
// hostile pages.

import { open } from "./browser.mjs";
import { assert, check, findings, sleep, until } from "./check.mjs";
import { Fleet } from "./pxvm.mjs";

const COUNT = 8;
const ROOM = 10;

const tile = (page, id) => page.locator(`.tiles .tile[data-id="${id}"]`);
const tiles = (page, state = "") => page.locator(`.tiles .tile${state && `[data-state="${state}"]`}`);
const detail = (page) => page.locator("#detail");
const gone = (page, selector) => page.locator(selector).waitFor({ state: "hidden" });

/** Returns the text of a VM's page in its tile, as the user sees it. */
async function pageText(host) {
  const frame = await host.locator("iframe:not(.coming)").last().elementHandle({ timeout: 20_000 });
  const content = await frame.contentFrame();
  return (await content?.locator("body").innerText({ timeout: 5000 })) ?? "";
}

/** Returns the same for the detail view; "" while there is no page. */
const wholePage = (page) => pageText(page.locator(".page-view")).catch(() => "");

/** Returns what the terminal shows, from its lines for screen readers. */
const screen = (page) => page.locator(".xterm-accessibility-tree").innerText();

async function see(page, text) {
  await until(`"${text}" in the console`, async () => (await screen(page)).replaceAll("\u00a0", " ").includes(text));
}

async function enter(page, id) {
  await page.evaluate((to) => (location.hash = `#/vm/${to}`), id);
  await detail(page).locator("h2", { hasText: `vm${id}` }).waitFor();
}

async function leave(page) {
  await page.evaluate(() => (location.hash = "#/"));
  await gone(page, "#detail");
}

async function type(page, line) {
  await page.locator(".console-view").click();
  await page.keyboard.type(`${line}\n`);
}

/** Sends a line to `target`, or to the target that the page has chosen. */
async function broadcast(page, line, target) {
  if (target) await page.locator("#target").selectOption(target);
  await page.locator("#line").fill(line);
  await page.locator("#line").press("Enter");
}

export async function live(pxvm, browser) {
  const args = ["--count", String(COUNT), "--capacity", String(ROOM)];
  let fleet = await Fleet.start(pxvm, args);
  const { context, page, wrong } = await open(browser, fleet);
  const api = (path) => fleet.get(path);
  try {
    await grid(page);
    await oneVm(page, api);
    await many(page, fleet);
    await hostile(page);
    await forEveryone(page);
    await check("no errors in the browser's console", () => assert.deepEqual(wrong.errors, []));
    fleet = await comesBack(page, fleet, pxvm, args);
    await check("no request leaves the host", () => assert.deepEqual(wrong.outside, []));
  } finally {
    await context.close();
    await fleet.end();
  }
}

async function grid(page) {
  await check("the grid fills as VMs boot", async () => {
    await until("all tiles", async () => (await tiles(page).count()) === COUNT);
    await until("all ready", async () => (await tiles(page, "ready").count()) === COUNT);
    await page.locator("#states button[data-value=ready] .number", { hasText: String(COUNT) }).waitFor();
  });
  await check("each tile shows its VM's own page", async () => {
    for (let id = 0; id < COUNT; id += 1) {
      await until(`vm${id}'s name on its page`, async () => {
        const text = await pageText(tile(page, id)).catch(() => "");
        return text.startsWith(`vm${id}\n`) && text.includes("Uptime");
      });
    }
  });
  await check("pages in tiles move", async () => {
    const before = await pageText(tile(page, 2));
    await until("another uptime", async () => (await pageText(tile(page, 2)).catch(() => before)) !== before);
  });
  await check("totals say what there is", async () => {
    await page.locator(".total", { hasText: "Ready" }).locator("p", { hasText: `${COUNT}of ${COUNT}` }).waitFor();
    const bars = await page.locator("#shares").getAttribute("aria-label");
    assert.equal(bars, `VMs by state: ${COUNT} ready`);
  });
  await check("search and state filter", async () => {
    await page.keyboard.press("/");
    await page.keyboard.type("2-4");
    await until("three tiles", async () => (await tiles(page).count()) === 3);
    for (const [search, names] of [
      ["4-6 1", "vm1 vm4 vm5 vm6"],
      ["vm2 - vm3,7", "vm2 vm3 vm7"],
      ["6-5", "vm5 vm6"],
      ["vm", "vm0 vm1 vm2 vm3 vm4 vm5 vm6 vm7"],
      ["VM3", "vm3"],
      ["4-", "vm4"],
      ["x 2", "vm2"],
    ]) {
      await page.locator("#search").fill(search);
      await until(`${names} by "${search}"`, async () => {
        const shown = await page.locator(".tiles .tile:visible .tile-name").allInnerTexts();
        return shown.sort().join(" ") === names;
      });
    }
    await page.keyboard.press("Escape");
    await until("all tiles", async () => (await tiles(page).count()) === COUNT);
    await page.locator("#states button[data-value=faulted]").click();
    await page.locator("#empty", { hasText: "No VM matches" }).waitFor();
    await page.locator('#states button[data-value=""]').click();
    await until("all tiles", async () => (await tiles(page).count()) === COUNT);
  });
  await check("arrows, Enter and Esc lead through the fleet", async () => {
    await page.keyboard.press("ArrowRight");
    await page.keyboard.press("Home");
    await page.keyboard.press("ArrowRight");
    assert.equal(await page.evaluate(() => document.activeElement.textContent), "vm1");
    await page.keyboard.press("Enter");
    await detail(page).locator("h2", { hasText: "vm1" }).waitFor();
    await page.keyboard.press("j");
    await detail(page).locator("h2", { hasText: "vm2" }).waitFor();
    await page.keyboard.press("Escape");
    await gone(page, "#detail");
    await until("the focus on vm2", () => page.evaluate(() => document.activeElement.textContent === "vm2"));
  });
}

async function oneVm(page, api) {
  await check("a console has its history and echoes what is typed", async () => {
    await enter(page, 3);
    await see(page, "PXVM READY host=vm3");
    await type(page, "echo a$((40 + 2))b");
    await see(page, "echo a$((40 + 2))b");
    await see(page, "a42b");
  });
  await check("Ctrl-] leaves the console", async () => {
    await page.keyboard.press("Control+]");
    assert.equal(await page.evaluate(() => document.activeElement.className), "back");
  });
  await check("a console fits its box at every size", async () => {
    const screen = page.locator(".xterm-screen");
    const widths = [];
    for (const width of [1280, 1000, 1400]) {
      await page.setViewportSize({ width, height: 800 });
      await until("a screen that fits", async () => {
        const [box, room] = [await screen.boundingBox(), await page.locator(".console-view").boundingBox()];
        return box.width <= room.width && box.width > room.width - 60 && box.height <= room.height;
      });
      widths.push((await screen.boundingBox()).width);
    }
    assert.ok(widths[1] < widths[0] && widths[0] < widths[2], String(widths));
    await page.setViewportSize({ width: 1280, height: 800 });
  });
  await check("registers, control registers and devices", async () => {
    await page.locator(".registers dt", { hasText: /^t6$/ }).waitFor();
    assert.equal(await page.locator(".registers:not(.few) div").count(), 32);
    assert.match(await page.locator(".hart").innerText(), /pc\s*[0-9a-f]{8}/);
    assert.ok((await page.locator(".registers.few div").count()) >= 4);
    await page.locator(".facts .sub", { hasText: /uart/i }).waitFor();
  });
  await check("the page at full size", async () => {
    await until("vm3's page", async () => (await wholePage(page)).startsWith("vm3\n"));
  });
  await check("pause stops a VM and its tile, resume goes on", async () => {
    await page.getByRole("button", { name: "Pause" }).click();
    await page.getByRole("button", { name: "Resume" }).waitFor();
    await leave(page);
    await page.locator('.tile[data-id="3"][data-state="paused"]').waitFor();
    const before = await api("/vms/3");
    await sleep(1500);
    const after = await api("/vms/3");
    assert.deepEqual([before.state, after.state, after.instret], ["paused", "paused", before.instret]);
    await tile(page, 3).locator(".tile-mips", { hasText: /^0 MIPS/ }).waitFor();
    await enter(page, 3);
    await page.getByRole("button", { name: "Resume" }).click();
    await page.getByRole("button", { name: "Pause" }).waitFor();
    await until("vm3 goes on", async () => (await api("/vms/3")).instret > before.instret);
  });
  await check("stop and reset ask first; reset boots again", async () => {
    await enter(page, 5);
    const sheet = page.locator("#confirm");
    await page.locator("#detail").getByRole("button", { name: "Reset" }).click();
    await sheet.locator("h2", { hasText: "Reset vm5?" }).waitFor();
    await page.keyboard.press("Escape");
    assert.equal((await api("/vms/5")).resets, 0);
    await page.locator("#detail").getByRole("button", { name: "Reset" }).click();
    await sheet.getByRole("button", { name: "Reset" }).click();
    await until("a reset", async () => (await api("/vms/5")).resets === 1);
    await until("vm5 ready again", async () => (await api("/vms/5")).state === "ready");
    await page.locator("#detail").getByRole("button", { name: "Stop" }).click();
    await sheet.getByRole("button", { name: "Cancel" }).click();
    assert.equal((await api("/vms/5")).state, "ready");
    await page.locator("#detail").getByRole("button", { name: "Stop" }).click();
    await sheet.getByRole("button", { name: "Stop" }).click();
    await until("vm5 stopped", async () => (await api("/vms/5")).state === "stopped");
    await leave(page);
    await page.locator('.tile[data-id="5"][data-state="stopped"]').waitFor();
  });
}

async function many(page, fleet) {
  const running = [0, 1, 2, 3, 4, 6, 7];
  await check("a line reaches all VMs", async () => {
    await broadcast(page, "echo to-all-$(hostname)", "all");
    await page.locator("#sent", { hasText: "sent to" }).waitFor();
    for (const id of running) {
      await until(`vm${id} says it`, async () => (await fleet.console(id)).includes(`\nto-all-vm${id}`));
    }
  });
  await check("a line reaches the VMs shown and no others", async () => {
    await page.locator("#search").fill("0-1");
    await until("two tiles", async () => (await tiles(page).count()) === 2);
    await broadcast(page, "echo to-some-$(hostname)");
    await page.locator("#sent", { hasText: "sent to 2 VMs" }).waitFor();
    for (const id of [0, 1]) {
      await until(`vm${id} says it`, async () => (await fleet.console(id)).includes(`\nto-some-vm${id}`));
    }
    for (const id of running.slice(2)) assert.ok(!(await fleet.console(id)).includes("to-some"));
    await page.locator("#search").fill("nothing");
    await broadcast(page, "echo to-none");
    await page.locator("#sent", { hasText: "no VM is shown" }).waitFor();
    assert.ok(!(await fleet.console(0)).includes("to-none"));
    // The choice of another target lasts until other VMs are shown.
    await page.locator("#search").fill("2");
    await page.locator("#target").selectOption("all");
    await page.locator("#search").fill("3");
    assert.equal(await page.locator("#target").inputValue(), "shown");
    await page.locator("#search").fill("");
    assert.equal(await page.locator("#target").inputValue(), "all");
    await page.locator("#states button[data-value=stopped]").click();
    assert.equal(await page.locator("#target").inputValue(), "shown");
    await page.locator('#states button[data-value=""]').click();
  });
  await check("a line that is typed while one looks into a VM reaches that one", async () => {
    await enter(page, 4);
    assert.equal(await page.locator("#target option:checked").innerText(), "vm4");
    await broadcast(page, "echo to-one-$(hostname)");
    await page.locator("#sent", { hasText: "sent to 1 VM" }).waitFor();
    await until("vm4 says it", async () => (await fleet.console(4)).includes("\nto-one-vm4"));
    for (const id of running.filter((id) => id !== 4)) assert.ok(!(await fleet.console(id)).includes("to-one"));
    await leave(page);
    assert.equal(await page.locator("#target").inputValue(), "all");
  });
  await check("VMs are added while there is room", async () => {
    await page.locator("#open-add").click();
    await page.locator("#add-room", { hasText: `room for ${ROOM - COUNT} more` }).waitFor();
    await page.locator("#add-count").fill(String(ROOM - COUNT));
    await page.locator("#add").getByRole("button", { name: "Add" }).click();
    await until("more tiles", async () => (await tiles(page).count()) === ROOM);
    await page.locator(`.tile[data-id="${ROOM - 1}"][data-state="ready"]`).waitFor();
    await page.locator("#open-add").click();
    await page.locator("#add-room", { hasText: "no room" }).waitFor();
    await page.locator("#add").getByRole("button", { name: "Cancel" }).click();
  });
}

async function hostile(page) {
  await check("a hostile page gets no script, no top, no cookies", async () => {
    await enter(page, 0);
    await see(page, "PXVM READY");
    await type(page, "cd /run/www");
    for (const piece of [
      "<title>evil</title><h1 id=h>evil</h1>",
      '<script>h.textContent="ran";top.location="/api/v1/fleet"</script>',
      "<img src=x onerror=top.document.title=1>",
    ]) {
      await type(page, `echo '${piece}' >> evil.html`);
    }
    await type(page, "echo written-$((1 + 1))");
    await see(page, "written-2");
    await page.locator(".where").fill(":80/evil.html");
    await page.locator(".where").press("Enter");
    await until("the page", async () => (await wholePage(page)).startsWith("evil"));
    await sleep(500);
    assert.equal(await wholePage(page), "evil");
    assert.equal(await page.title(), "vm0 - pxvm");
    assert.match(page.url(), /#\/vm\/0$/);
  });
  await check("a hostile console stays text", async () => {
    await type(page, "printf '\\033]0;owned\\007<img src=x onerror=document.title=1>\\n'");
    await see(page, "\n<img src=x onerror=document.title=1>");
    assert.equal(await page.title(), "vm0 - pxvm");
    assert.equal(await page.locator(".console-view img").count(), 0);
  });
  await check("after a long console another VM's begins anew", async () => {
    await type(page, "seq 1 500; echo end-$((500 + 1))");
    await see(page, "end-501");
    await leave(page);
    await enter(page, 1);
    await see(page, "PXVM READY host=vm1");
    assert.ok(!(await screen(page)).includes("end-501"));
    await leave(page);
  });
}

async function forEveryone(page) {
  for (const theme of ["dark", "light"]) {
    await check(`axe finds nothing serious, ${theme}`, async () => {
      const now = await page.evaluate(() => document.documentElement.dataset.theme);
      if (now !== theme) await page.locator("#theme").click();
      assert.deepEqual(await findings(page), []);
      await enter(page, 1);
      await page.locator(".registers dt").first().waitFor();
      assert.deepEqual(await findings(page), []);
      await leave(page);
      await page.locator("#open-keys").click();
      assert.deepEqual(await findings(page), []);
      await page.keyboard.press("Escape");
    });
  }
  await check("a phone's width is enough", async () => {
    await page.setViewportSize({ width: 360, height: 740 });
    const overflow = () =>
      page.evaluate(() => {
        const right = (element) => element.getBoundingClientRect().right;
        const parts = [...document.querySelectorAll("body > :not(dialog, .skip), .tile, .box, .detail-head > *")];
        const isOut = (element) => element.checkVisibility() && right(element) > innerWidth + 1;
        return parts.filter(isOut).map((element) => element.className);
      });
    await tile(page, 0).waitFor();
    assert.deepEqual(await overflow(), []);
    await enter(page, 1);
    assert.deepEqual(await overflow(), []);
    assert.deepEqual(await findings(page), []);
    await leave(page);
    await page.setViewportSize({ width: 1280, height: 800 });
  });
}

async function comesBack(page, fleet, pxvm, args) {
  const listen = new URL(fleet.url).host;
  await fleet.end();
  let next = fleet;
  await check("it says so when the server goes away, and comes back with it", async () => {
    await page.locator("#banner", { hasText: "went away" }).waitFor();
    await page.locator("#link", { hasText: "not connected" }).waitFor();
    assert.deepEqual(await findings(page), []);
    next = await Fleet.start(pxvm, args, { listen });
    await page.locator("#link", { hasText: "live" }).waitFor();
    assert.ok(await page.locator("#banner").isHidden());
    await until("the new fleet's tiles", async () => (await tiles(page, "ready").count()) === COUNT);
    assert.equal(await tiles(page).count(), COUNT);
  });
  return next;
}
