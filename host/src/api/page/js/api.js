// The control API, as the page uses it.

const BASE = "/api/v1";

/** What the server refused, in its words. */
export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function call(path, options = {}) {
  let response;
  try {
    response = await fetch(BASE + path, { cache: "no-store", signal: AbortSignal.timeout(10_000), ...options });
  } catch {
    throw new Refused(0, "The server does not answer.");
  }
  if (response.ok) return response;
  let message = `The server answered ${response.status}.`;
  try {
    message = (await response.json()).error.message;
  } catch {
    // Not in the API's form; the status must do.
  }
  throw new Refused(response.status, message);
}

const json = async (path, options) => (await call(path, options)).json();
const post = (path, body) =>
  json(path, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) });

export const fleet = () => json("/fleet");
export const vm = (id) => json(`/vms/${id}`);
export const snapshot = (id) => json(`/vms/${id}/snapshot`);
/** pause, resume, reset or stop. */
export const act = (id, verb) => json(`/vms/${id}/${verb}`, { method: "POST" });
export const addVms = (count) => post("/vms", { count });
export const sendLine = (line, to) => post("/input", { line, ...to });

/** Where a VM's page is. */
export const pageUrl = (id, port, path = "/") => `/vms/${id}/http/${port}${path}`;

/** Where a VM's console is. */
export function consoleUrl(id) {
  const url = new URL(`${BASE}/vms/${id}/console/ws`, location.href);
  url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
  return url;
}

export const events = () => new EventSource(`${BASE}/events`);
export const isAlive = async () => (await fetch("/healthz", { signal: AbortSignal.timeout(5000) })).ok;
