// The fleet's token, where the server requires one. The user opens the address that pxvm printed,
// which has it behind the #, or types it in. It is kept in this tab. It is never in a cookie:
// browsers send cookies to all ports of a host, and guests listen at some of them.

import { byId, setText } from "./dom.js";

const KEY = "pxvm-token";
/** The token in the fragment of the address. Views have other fragments. */
const IN_HASH = /^#token=([\w-]+)$/;

/** Where storage is forbidden, the token lasts as long as the page. */
let token = "";

try {
  token = sessionStorage.getItem(KEY) ?? "";
} catch {
  // Storage is forbidden: no token is known yet.
}

function keep(given) {
  token = given;
  try {
    sessionStorage.setItem(KEY, given);
  } catch {
    // Storage is forbidden: the variable keeps it.
  }
}

/** Removes the token from the address, so that neither the address bar nor the history shows it. */
function take() {
  const url = new URL(location.href);
  const given = IN_HASH.exec(url.hash)?.[1] ?? url.searchParams.get("token");
  if (given === null || given === undefined) return false;
  keep(given);
  url.searchParams.delete("token");
  if (IN_HASH.test(url.hash)) url.hash = "";
  history.replaceState(null, "", url.pathname + url.search + url.hash);
  return true;
}

take();
// Runs when the printed address is opened in a tab that shows the dashboard already.
addEventListener("hashchange", () => take() && location.reload());

/** Returns the headers that authenticate a request. */
export const headers = () => (token ? { authorization: `Bearer ${token}` } : {});
/** Returns the protocols that authenticate a WebSocket, which cannot have headers. The server picks the first. */
export const protocols = () => (token ? ["pxvm", `pxvm.token.${token}`] : ["pxvm"]);

/** Asks the user for the token until one was entered. */
export function ask() {
  const [sheet, field] = [byId("sign-in"), byId("token")];
  setText(byId("sign-in-wrong"), token ? "That is not the token of this fleet." : "");
  field.value = "";
  return new Promise((done) => {
    const show = () => {
      sheet.addEventListener("close", closed, { once: true });
      sheet.showModal();
    };
    const closed = () => {
      const given = field.value.trim();
      if (given === "") return show();
      keep(given);
      done();
    };
    show();
  });
}
