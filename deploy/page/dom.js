// Making elements, and writing figures as people read them. No text of the server's ever becomes markup.

const SVG = "http://www.w3.org/2000/svg";

function made(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "css") for (const [property, set] of Object.entries(value)) node.style.setProperty(property, set);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

export const el = (tag, attributes, ...children) => made(document.createElement(tag), attributes, children);
export const svg = (tag, attributes, ...children) => made(document.createElementNS(SVG, tag), attributes, children);
export const $ = (id) => document.getElementById(id);

// Puts new children in place of those there are, unless nothing changed: focus and selection stay where they are.
export function fill(node, ...children) {
  const fresh = el("div", {}, ...children);
  const focus = node.contains(document.activeElement) ? document.activeElement?.dataset.key : undefined;
  if (node.innerHTML === fresh.innerHTML && node.dataset.filled) return;
  node.dataset.filled = "yes";
  node.replaceChildren(...fresh.childNodes);
  if (focus) node.querySelector(`[data-key="${CSS.escape(focus)}"]`)?.focus();
}

export function table(caption, head, rows, { numeric = [] } = {}) {
  const cell = (value, k) => el("td", { class: numeric.includes(k) ? "n" : undefined, "data-label": head[k] }, value);
  return el(
    "table", {},
    el("caption", { class: "quiet-to-eyes" }, caption),
    el("thead", {}, el("tr", {}, head.map((name, k) => el("th", { scope: "col", class: numeric.includes(k) ? "n" : undefined }, name)))),
    el("tbody", {}, rows.map((row) => el("tr", {}, row.map(cell)))),
  );
}

const whole = new Intl.NumberFormat("en");
export const count = (value) => (value === null || value === undefined ? "–" : whole.format(value));
export const percent = (share, digits = 1) => (share === null || share === undefined ? "–" : `${(100 * share).toFixed(digits)} %`);
export const between = (low, high) => (low === null || low === undefined ? "" : `${(100 * low).toFixed(1)} … ${(100 * high).toFixed(1)} %`);
export const signed = (value, digits = 1) => (+value.toFixed(digits) === 0 ? "±" : value < 0 ? "−" : "+") + Math.abs(value).toFixed(digits);
export const number = (value) => (value === null || value === undefined ? "–" : Number(value.toPrecision(3)).toString());
export const milliseconds = (seconds) => (seconds === null || seconds === undefined ? "–" : `${number(1000 * seconds)} ms`);

const pad = (value) => String(value).padStart(2, "0");
export function clock(at, withDay = false) {
  const time = new Date(at);
  const day = `${time.getFullYear()}-${pad(time.getMonth() + 1)}-${pad(time.getDate())}`;
  return `${withDay ? `${day} ` : ""}${pad(time.getHours())}:${pad(time.getMinutes())}`;
}
export function ago(at, now = Date.now()) {
  const seconds = Math.max(0, (now - new Date(at)) / 1000);
  const [size, unit] = seconds < 60 ? [1, "s"] : seconds < 3600 ? [60, "min"] : seconds < 172800 ? [3600, "h"] : [86400, "days"];
  return `${Math.floor(seconds / size)} ${unit} ago`;
}
export const when = (at) => el("time", { datetime: at, title: new Date(at).toString() }, clock(at, true));
export function took(seconds) {
  return seconds < 60 ? `${seconds.toFixed(1)} s` : seconds < 3600 ? `${(seconds / 60).toFixed(1)} min` : `${(seconds / 3600).toFixed(1)} h`;
}
