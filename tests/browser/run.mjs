// The browser tests. tests/browser/run.sh starts this program.

import { launch } from "./browser.mjs";
import { sums } from "./check.mjs";
import { live } from "./live.mjs";
import { map } from "./map.mjs";
import { token } from "./token.mjs";

const parts = { live, token, map };
const [pxvm, ...names] = process.argv.slice(2);
for (const name of names) {
  if (!(name in parts)) {
    console.error(`There is no part ${name}; there are ${Object.keys(parts).join(", ")}.`);
    process.exit(2);
  }
}

const browser = await launch();
try {
  for (const name of names.length > 0 ? names : Object.keys(parts)) await parts[name](pxvm, browser);
} finally {
  await browser.close();
}
console.log(`${sums.passed} passed, ${sums.failed} failed`);
process.exit(sums.failed > 0 ? 1 : 0);
