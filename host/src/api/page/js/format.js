// Formats numbers for people.

const whole = new Intl.NumberFormat("en-US");

/** Returns a whole number with separated thousands. */
export const count = (n) => whole.format(Math.round(n));

/** Returns three significant digits, with a prefix from 1,000 on: 999, 1.23 k, 45.6 M. */
export function compact(n) {
  const [digits, unit] = parts(n);
  return unit ? `${digits} ${unit}` : digits;
}

/** Returns the same in two parts: number and prefix. */
export function parts(n) {
  const units = ["", "k", "M", "G", "T", "P"];
  let unit = 0;
  let value = n;
  while (Math.abs(value) >= 999.5 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  const digits = unit === 0 && Number.isInteger(value) ? 0 : value >= 99.95 ? 0 : value >= 9.995 ? 1 : 2;
  return [value.toFixed(digits), units[unit]];
}

/** Returns a speed in MIPS in few characters. */
export function mips(n) {
  if (n <= 0) return "0";
  if (n < 0.05) return "<0.1";
  return n < 99.95 ? n.toFixed(1) : n < 9999.5 ? n.toFixed(0) : compact(n * 1e6).replace(" ", "");
}

/** Returns bytes with a binary prefix, as number and unit. */
export function bytes(n) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  let value = n;
  while (value >= 1023.5 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return [unit === 0 || value >= 99.95 ? value.toFixed(0) : value.toFixed(1), units[unit]];
}

/** Returns seconds as 42, 3:07, 5:03:07 or 2 d 5:03. Only the first needs the unit s. */
export function duration(seconds) {
  const s = Math.floor(seconds);
  if (s < 60) return String(s);
  const pad = (n) => String(n).padStart(2, "0");
  const [days, hours, minutes] = [Math.floor(s / 86400), Math.floor(s / 3600) % 24, Math.floor(s / 60) % 60];
  if (days > 0) return `${days} d ${hours}:${pad(minutes)}`;
  return hours > 0 ? `${hours}:${pad(minutes)}:${pad(s % 60)}` : `${minutes}:${pad(s % 60)}`;
}

/** Returns a machine word in hexadecimal. The API sends words as numbers or as text. */
export function word(value) {
  if (typeof value === "number") return (value >>> 0).toString(16).padStart(8, "0");
  const text = String(value);
  return text.startsWith("0x") ? text.slice(2).padStart(8, "0") : text;
}
