"use strict";
// A classic script in the head. It runs before anything is drawn, so that the page is never
// shown in the wrong theme first. The system's theme is used until the user chooses one.
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
      // The choice lasts until the page is closed.
    }
    apply(detail);
  });
  apply(current());
})();
