"use strict";
// A classic script in the head: it runs before anything is drawn, so that the page
// never shows in the other theme first. The host's theme counts until one is chosen.
(() => {
  const KEY = "pxvm-theme";
  const light = matchMedia("(prefers-color-scheme: light)");

  const chosen = () => {
    try {
      return localStorage.getItem(KEY);
    } catch {
      return null; // storage may be forbidden
    }
  };
  const apply = (theme) => {
    document.documentElement.dataset.theme = theme;
    dispatchEvent(new Event("theme"));
  };
  const current = () => chosen() ?? (light.matches ? "light" : "dark");

  light.addEventListener("change", () => apply(current()));
  addEventListener("choose-theme", ({ detail }) => {
    try {
      localStorage.setItem(KEY, detail);
    } catch {
      // It lasts until the page is closed.
    }
    apply(detail);
  });
  apply(current());
})();
