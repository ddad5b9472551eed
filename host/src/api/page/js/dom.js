// Helpers for DOM elements. Text is always inserted as text, so output of a guest is never markup.

/** Returns the element of index.html with that id. */
export const byId = (id) => document.getElementById(id);

/** Returns a new element with these properties; a name with a dash is set as an attribute. */
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

/** Sets the text of an element only if it differs, to avoid a layout pass. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Returns a text node that remembers what it shows, for text that changes often. */
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
 * Makes a row of buttons of which one is pressed. `list` has [value, content...] for each.
 * Returns a function that presses one without calling `onChoose`.
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

/** Returns a colour of the style sheets in a form that a canvas accepts. */
export const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

/** Gives a canvas the size of its box in device pixels. Returns a context that draws in CSS pixels. */
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

/** Returns a function that runs `draw` once in the next animation frame, however often it is called. */
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
