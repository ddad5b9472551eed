// Connects the parts of the page: one fleet, one event stream, and one of three views.

import { setUpAdding } from "./add.js";
import { byId, choices, el, fitCanvas, setText } from "./dom.js";
import { Detail } from "./detail.js";
import { Filter } from "./filter.js";
import { Fleet } from "./fleet.js";
import { count, mips } from "./format.js";
import { Grid } from "./grid.js";
import { FleetMap } from "./map.js";
import { Pages } from "./pages.js";
import { Send } from "./send.js";
import { follow } from "./stream.js";
import { STATES } from "./tables.js";
import { Totals } from "./totals.js";

/** Fleets of more VMs than this show the map first. */
const TILES_MOST = 500;
const SIZE_NAMES = ["small", "regular", "large"];

const fleet = new Fleet();
const filter = new Filter();
const pages = new Pages(fleet);
const totals = new Totals();
const grid = new Grid(byId("stage"), fleet, pages);
const map = new FleetMap(byId("stage"), fleet, pages);
const detail = new Detail(fleet, (by) => {
  const to = detail.id + by;
  if (to >= 0 && to < fleet.count) location.replace(`#/vm/${to}`);
});
const shown = () => ({ ids, state: filter.state, byText: filter.text.trim() !== "", vm: detail.id });
const send = new Send(fleet, shown);

/** The numbers of the VMs shown, in order. */
let ids = [];
/** Number of VMs at the last event. */
let lastCount = 0;
/** "tiles" or "map" if the user has chosen; otherwise the number of VMs decides. */
let chosenView = null;

// ---- views ------------------------------------------------------------------

function apply() {
  ids = filter.matches(fleet);
  const asMap = chosenView ? chosenView === "map" : ids.length > TILES_MOST;
  const inFleet = !detail.isShown;
  grid.toggle(inFleet && !asMap);
  map.toggle(inFleet && asMap);
  if (asMap) map.setMatch(filter.isOpen ? () => true : filter.test(fleet));
  else grid.setIds(ids);
  pressView(asMap ? "map" : "tiles");
  byId("sizes").hidden = asMap;
  byId("colours").hidden = !asMap;
  byId("zoom").hidden = !asMap;
  byId("legend").hidden = !asMap || map.by !== "mips";
  byId("empty").hidden = !inFleet || asMap || ids.length > 0;
  setText(byId("empty"), fleet.info ? "No VM matches." : "");
  send.show(fleet.count, filter, ids.length, detail.id);
}

function route() {
  const match = /^#\/vm\/(\d+)$/.exec(location.hash);
  const id = match ? Number(match[1]) : -1;
  const known = id >= 0 && id < fleet.count;
  if (match && fleet.count > 0 && !known) {
    location.replace("#/");
    return;
  }
  const was = detail.id;
  if (known) {
    if (id !== was) detail.open(id);
    grid.cursor = id;
    map.cursor = id;
  } else if (detail.isShown) detail.close();
  for (const part of ["totals", "tools"]) byId(part).hidden = known;
  const title = known ? fleet.name(id) : "Fleet";
  setText(byId("title"), title);
  document.title = known ? `${title} - pxvm` : "pxvm";
  apply();
  if (known && was < 0) detail.back.focus({ preventScroll: true });
  else if (!known && was >= 0) (grid.isShown ? grid : map).focus(was);
}

// ---- events of the server ---------------------------------------------------

fleet.onInfo = (info, anew) => {
  totals.show(info);
  const numbers = { "": info.count, ...info.states };
  for (const button of byId("states").children) {
    const number = numbers[button.dataset.value] ?? 0;
    setText(button.querySelector(".number"), count(number));
    button.classList.toggle("none", number === 0);
  }
  if (anew) {
    detail.close();
    grid.setIds([]);
    apply();
  }
};

fleet.onVms = (changed) => {
  const isNew = fleet.count !== lastCount;
  lastCount = fleet.count;
  if (isNew) route();
  else if (!filter.isOpen) apply();
  grid.update(changed);
  map.update(changed);
  detail.update();
};
follow(fleet, (state, text) => {
  const isLost = state === "lost";
  byId("link").dataset.link = state;
  setText(byId("link"), isLost ? "not connected" : text);
  setText(byId("banner"), isLost ? text : "");
  byId("banner").hidden = !isLost;
  document.body.classList.toggle("lost", isLost);
  for (const part of [pages, detail, detail.page]) part.isHeld = isLost;
});

// ---- controls ---------------------------------------------------------------

const glyph = (state) => {
  const mark = el("span");
  mark.dataset.state = state;
  mark.append(el("span", { class: "glyph" }));
  return mark;
};
const stateChoices = [["", "All"], ...STATES.map((state) => [state, glyph(state), state])];
choices(
  byId("states"),
  stateChoices.map((choice) => [...choice, el("span", { class: "number" }, "0")]),
  "",
  (state) => {
    filter.state = state;
    apply();
  },
);
const pressView = choices(byId("views"), [["tiles", "Tiles"], ["map", "Map"]], "tiles", (view) => {
  chosenView = view;
  apply();
});
const pressSize = choices(byId("sizes"), [["small", "S"], ["regular", "M"], ["large", "L"]], "regular", setSize);
for (const [at, button] of [...byId("sizes").children].entries()) {
  button.setAttribute("aria-label", `${SIZE_NAMES[at]} tiles`);
}
choices(byId("colours"), [["state", "State"], ["mips", "Speed"]], "state", (by) => {
  map.setColour(by);
  apply();
});

byId("zoom-in").addEventListener("click", () => map.zoomIn());
byId("zoom-out").addEventListener("click", () => map.zoomOut());
byId("zoom-all").addEventListener("click", () => map.fit());

function setSize(size) {
  grid.setSize(size);
  pressSize(size);
}

const ramp = el("canvas", { role: "img", "aria-label": "Colours from slow to fast" });
const fastest = el("span");
byId("legend").append("0", ramp, fastest);
map.onLegend = (by, { speeds }, most) => {
  if (by !== "mips") return;
  setText(fastest, `${mips(most)} MIPS`);
  const { context, width, height } = fitCanvas(ramp, 96, 8);
  speeds.forEach((colour, at) => {
    context.fillStyle = colour;
    context.fillRect((at / speeds.length) * width, 0, width / speeds.length + 1, height);
  });
};
map.onOpen = (id) => {
  location.hash = `#/vm/${id}`;
};

byId("search").addEventListener("input", (event) => {
  filter.text = event.target.value;
  apply();
});
byId("search").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && ids.length === 1) map.onOpen(ids[0]);
  else if (event.key === "Enter" || event.key === "ArrowDown") (grid.isShown ? grid : map).focus(ids[0]);
  else return;
  event.preventDefault();
});

const themeButton = byId("theme");
const nameTheme = () => {
  const isDark = document.documentElement.dataset.theme === "dark";
  setText(themeButton, isDark ? "Light" : "Dark");
  themeButton.setAttribute("aria-label", `Switch to the ${isDark ? "light" : "dark"} theme`);
};
themeButton.addEventListener("click", () => {
  const isDark = document.documentElement.dataset.theme === "dark";
  dispatchEvent(new CustomEvent("choose-theme", { detail: isDark ? "light" : "dark" }));
});
addEventListener("theme", nameTheme);
nameTheme();

byId("open-keys").addEventListener("click", () => byId("keys").showModal());
setUpAdding(fleet);

// ---- keys -------------------------------------------------------------------

addEventListener("keydown", (event) => {
  if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
  if (document.querySelector("dialog[open]")) return;
  const { target } = event;
  if (target.closest(".console-view")) return; // every key goes to the guest
  if (target.matches("input, select, textarea")) {
    if (event.key === "Escape") leaveField(target);
    return;
  }
  if (pressed(event)) event.preventDefault();
});

function leaveField(field) {
  if (field.id === "search" && field.value) {
    field.value = "";
    filter.text = "";
    apply();
  }
  field.blur();
}

function pressed(event) {
  const { key } = event;
  const on = (id) => byId(id).click();
  if (key === "?") on("open-keys");
  else if (key === "b") send.focus();
  else if (detail.isShown) {
    if (key !== "Escape") return detail.key(event);
    location.hash = "#/";
  } else if (key === "/") byId("search").focus();
  else if (key === "Escape") document.activeElement?.blur();
  else if (map.isShown) return map.key(key);
  else if (key === "+" || key === "-" || key === "=") {
    const at = SIZE_NAMES.indexOf(grid.size) + (key === "-" ? -1 : 1);
    if (SIZE_NAMES[at]) setSize(SIZE_NAMES[at]);
  } else return grid.key(key);
  return true;
}

addEventListener("hashchange", route);
apply();
