// Writes host/src/api/page/vendor/ anew from the packages pinned beside this file:
//
//   npm ci && npm rebuild esbuild && node make.mjs
//
// xterm.js and two of its add-ons become one module from their sources, with private
// names shortened: as published they are 380 KiB in three files.

import { build } from "esbuild";
import { copyFileSync, existsSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { dirname, resolve } from "node:path";
import { fileURLToPath } from "node:url";

const here = dirname(fileURLToPath(import.meta.url));
const page = resolve(here, "../../../host/src/api/page/vendor");
const modules = resolve(here, "node_modules");
const xterm = `${modules}/@xterm/xterm`;
const SIZE_MAX = 256 * 1024;

const firstOf = (stem) => [".ts", ".d.ts"].map((end) => stem + end).find(existsSync);
const sources = {
  name: "xterm's own paths",
  setup({ onResolve }) {
    onResolve({ filter: /^(browser|common)\// }, ({ path }) => ({ path: firstOf(`${xterm}/src/${path}`) }));
    onResolve({ filter: /^\.\/.*Types$/ }, ({ path, resolveDir }) => ({ path: firstOf(resolve(resolveDir, path)) }));
  },
};
const version = (name) => JSON.parse(readFileSync(`${modules}/${name}/package.json`)).version;
const names = ["@xterm/xterm", "@xterm/addon-canvas", "@xterm/addon-fit"];

await build({
  stdin: {
    contents: `
      export { Terminal } from "@xterm/xterm/src/browser/public/Terminal.ts";
      export { CanvasAddon } from "@xterm/addon-canvas/src/CanvasAddon.ts";
      export { FitAddon } from "@xterm/addon-fit/src/FitAddon.ts";`,
    resolveDir: here,
  },
  outfile: `${page}/terminal.js`,
  banner: { js: `// ${names.map((name) => `${name} ${version(name)}`).join(", ")}; MIT, see LICENSE-xterm.txt` },
  bundle: true,
  charset: "utf8",
  format: "esm",
  legalComments: "none",
  mangleProps: /^_[a-z]/,
  minify: true,
  plugins: [sources],
  target: "es2022",
  tsconfigRaw: { compilerOptions: { experimentalDecorators: true, useDefineForClassFields: false } },
});

copyFileSync(`${xterm}/css/xterm.css`, `${page}/terminal.css`);
copyFileSync(`${xterm}/LICENSE`, `${page}/LICENSE-xterm.txt`);
for (const family of ["sans", "mono"]) {
  const from = `${modules}/@fontsource/ibm-plex-${family}`;
  for (const weight of family === "sans" ? [400, 500, 600] : [400, 500]) {
    const file = `ibm-plex-${family}-latin-${weight}-normal.woff2`;
    copyFileSync(`${from}/files/${file}`, `${page}/${file}`);
  }
  writeFileSync(`${page}/LICENSE-plex-${family}.txt`, readFileSync(`${from}/LICENSE`));
}
for (const file of ["terminal.js", "terminal.css"]) {
  const { size } = statSync(`${page}/${file}`);
  console.log(`${file}: ${size} bytes`);
  if (size > SIZE_MAX) throw new Error(`${file} is larger than 256 KiB`);
}
