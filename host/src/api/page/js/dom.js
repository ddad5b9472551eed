// Elements. Text always goes in as text: what a guest says is never markup.

/** The element with that id, which index.html has. */
export const byId = (id) => document.getElementById(id);

/** A new element; `properties` are set on it, attributes where the name has a dash. */
export function el(name, properties = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key.includes("-") || key === "role" || key === "for") element.setAttribute(key, value);
    else if (key === "class") element.className = value;
    else element[key] = value;
  }
  element.append(...children);
  return element;
}

/** Sets text only where it differs, so that nothing is laid out for nothing. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** A text that remembers what it shows, for what changes often. */
export function text() {
  const node = document.createTextNode("");
  let shown = "";
  return {
    node,
    set(next) {
      if (next === shown) return;
      shown = next;
      node.data = next;
    },
  };
}

/**
 * A row of buttons of which one is pressed. `choices` are [value, content...];
 * returns a function that presses one without telling.
 */
export function choices(host, list, pressed, onChoose) {
  const buttons = list.map(([value, ...content]) => {
    const button = el("button", { type: "button" }, ...content);
    button.dataset.value = value;
    button.addEventListener("click", () => {
      press(value);
      onChoose(value);
    });
    return button;
  });
  const press = (value) => {
    for (const button of buttons) button.setAttribute("aria-pressed", button.dataset.value === value);
  };
  host.replaceChildren(...buttons);
  press(pressed);
  return press;
}

/** A colour of the style sheets, as the canvas understands it. */
export const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

/** Sizes a canvas to its box in device pixels; its context draws in CSS pixels. */
export function fitCanvas(canvas, width = canvas.clientWidth, height = canvas.clientHeight) {
  const scale = devicePixelRatio || 1;
  const [w, h] = [Math.round(width * scale), Math.round(height * scale)];
  if (canvas.width !== w || canvas.height !== h) {
    canvas.width = w;
    canvas.height = h;
  }
  const context = canvas.getContext("2d");
  context.setTransform(scale, 0, 0, scale, 0, 0);
  return { context, width, height };
}

/** Runs `draw` once in the next frame, however often it is called. */
export function oncePerFrame(draw) {
  let waiting = false;
  return () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      draw();
    });
  };
}
