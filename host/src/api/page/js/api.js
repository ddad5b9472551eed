// The control API, as the page uses it.

import * as auth from "./auth.js";

const BASE = "/api/v1";

/** A request that the server refused, with the server's message. Status 0: it did not reply. */
export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function call(path, { headers, signal = AbortSignal.timeout(10_000), ...options } = {}) {
  let response;
  try {
    // The API uses no cookies. Those of this host may be of guests at other ports.
    const own = { cache: "no-store", credentials: "omit", headers: { ...headers, ...auth.headers() } };
    response = await fetch(BASE + path, { ...own, signal, ...options });
  } catch {
    throw new Refused(0, "The server does not answer.");
  }
  if (response.ok) return response;
  let message = `The server answered ${response.status}.`;
  try {
    message = (await response.json()).error.message;
  } catch {
    // The body is not the API's JSON, so the message names the status alone.
  }
  throw new Refused(response.status, message);
}

const json = async (path, options) => (await call(path, options)).json();
const post = (path, body) =>
  json(path, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) });

export const fleet = () => json("/fleet");
export const vm = (id) => json(`/vms/${id}`);
export const snapshot = (id) => json(`/vms/${id}/snapshot`);
/** Executes a command of the table; `values` are its arguments. */
export function execute(id, command, values) {
  const path = `/vms/${id}/${command.name}`;
  return command.arguments ? post(path, values) : json(path, { method: "POST" });
}
export const addVms = (count) => post("/vms", { count });
export const sendLine = (line, to) => post("/input", { line, ...to });

/** Tickets for VMs' pages, by VM and port. They become invalid when the server starts again. */
const tickets = new Map();
export const forgetTickets = () => tickets.clear();

/** Returns the URL of a VM's page. It contains a ticket, because an iframe cannot send the token. */
export async function pageUrl(id, port, path = "/") {
  const key = `${id}:${port}`;
  if (!tickets.has(key)) tickets.set(key, json(`/vms/${id}/ticket?port=${port}`));
  const ticket = tickets.get(key);
  ticket.catch(() => tickets.get(key) === ticket && tickets.delete(key));
  return (await ticket).path + path.slice(1);
}

/** Opens a WebSocket to a VM's console. */
export function consoleSocket(id) {
  const url = new URL(`${BASE}/vms/${id}/console/ws`, location.href);
  url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
  return new WebSocket(url, auth.protocols());
}

const FIELD = /^(\w+): ?(.*)$/gm;

/**
 * Yields the events of the fleet as [name, data]. Events without a name are keep-alives.
 * An EventSource cannot send the token, so this reads the stream itself.
 */
export async function* events(signal) {
  const { body } = await call("/events", { signal });
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const fields = [...part.matchAll(FIELD)].map(([, name, text]) => [name, text]);
      const { event = "", data = "null" } = Object.fromEntries(fields);
      yield [event, JSON.parse(data)];
    }
  }
}
