// The fleet's token, where the server wants one. It comes behind the # of the address that pxvm
// printed, or is typed in, and stays with this tab. It is never in a cookie: browsers send
// those to all ports of a host, and guests listen at some of them.

import { byId, setText } from "./dom.js";

const KEY = "pxvm-token";
/** Before and after the address of a view. */
const IN_HASH = /^#token=([\w-]+)$/;

/** Where storage is forbidden, the token lasts as long as the page. */
let token = "";

try {
  token = sessionStorage.getItem(KEY) ?? "";
} catch {
  // There is none.
}

function keep(given) {
  token = given;
  try {
    sessionStorage.setItem(KEY, given);
  } catch {
    // It is kept here.
  }
}

/** Takes the token out of the address, so that neither the bar nor the history has it. */
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
// The printed address was opened in a tab that shows the dashboard already.
addEventListener("hashchange", () => take() && location.reload());

/** What tells the server who we are. */
export const headers = () => (token ? { authorization: `Bearer ${token}` } : {});
/** The same where a page can send no headers: a WebSocket's protocols, of which the server takes the first. */
export const protocols = () => (token ? ["pxvm", `pxvm.token.${token}`] : ["pxvm"]);

/** Asks for the token, until there is one. */
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
