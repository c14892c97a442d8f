// Lines over time, with bands of uncertainty and marks, as SVG; a table of the same figures stands behind each chart.

import { clock, count, el, svg, table } from "./dom.js";

const HIGH = 200, LEFT = 54, RIGHT = 16, TOP = 16, BOTTOM = 24, NAME = 30; // pixels; the last is what the name of a mark takes

// series: [{name, colour, runs: [[{at, value, low, high, note}]]}], a run is drawn without a gap; at in milliseconds.
// marks: [{at, text}]: of those that stand close the last is named. show: value → text. range: [low, high] of values, or undefined: from 0 to the highest.
export function chart(figure, { title, series, marks = [], from, to, show, range, empty }) {
  const points = series.flatMap((one) => one.runs.flat());
  const drawn = JSON.stringify([series, marks, Math.round((to - from) / 1000), points.length ? to : 0, figure.clientWidth]);
  if (figure.dataset.drawn === drawn) return;
  figure.dataset.drawn = drawn;
  if (!points.length) {
    figure.replaceChildren(el("p", { class: "empty" }, empty ?? "Nothing yet."));
    return;
  }
  const wide = Math.max(260, figure.clientWidth);
  const top = range ? range[1] : nice(Math.max(...points.map((p) => p.high ?? p.value)));
  const bottom = range ? range[0] : 0;
  const x = (at) => LEFT + ((wide - LEFT - RIGHT) * (at - from)) / (to - from);
  const y = (value) => TOP + ((HIGH - TOP - BOTTOM) * (top - Math.min(top, Math.max(bottom, value)))) / (top - bottom || 1);
  const at = (px) => from + ((px - LEFT) / (wide - LEFT - RIGHT)) * (to - from);

  const cursor = svg("line", { class: "cursor", y1: TOP, y2: HIGH - BOTTOM, visibility: "hidden" });
  const said = el("output", { class: "said", "aria-live": "polite" });
  const picture = svg(
    "svg",
    { viewBox: `0 0 ${wide} ${HIGH}`, width: wide, height: HIGH, role: "img", tabindex: 0, "data-key": figure.id,
      "aria-label": `${title}. ${summary(series, show)} Left and right arrow keys read it out.` },
    grid(bottom, top, y, wide, show), times(from, to, x),
    series.map((one) => svg("g", { class: `series ${one.colour}` }, one.runs.map((run) => drawnRun(run, x, y)))),
    marks.filter((mark) => mark.at >= from && mark.at <= to).sort((a, b) => a.at - b.at).map((mark, k, all) => marked(mark, x, all[k + 1])),
    cursor,
  );
  const moments = [...new Set(points.map((p) => p.at))].sort((a, b) => a - b);
  let place = -1;
  function read(k) {
    place = Math.max(0, Math.min(moments.length - 1, k));
    const moment = moments[place];
    cursor.setAttribute("x1", x(moment));
    cursor.setAttribute("x2", x(moment));
    cursor.setAttribute("visibility", "visible");
    const told = series.flatMap((one) => one.runs.flat().filter((p) => p.at === moment).map((p) => `${one.name} ${told1(p, show)}`));
    said.textContent = `${clock(moment, to - from > 86400e3)}: ${told.join("; ")}`;
  }
  picture.addEventListener("pointermove", (event) => {
    const moment = at((event.offsetX * wide) / picture.clientWidth);
    read(moments.reduce((best, one, k) => (Math.abs(one - moment) < Math.abs(moments[best] - moment) ? k : best), 0));
  });
  picture.addEventListener("pointerleave", () => cursor.setAttribute("visibility", "hidden"));
  picture.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    if (!step) return;
    event.preventDefault();
    read(place < 0 ? moments.length - 1 : place + step);
  });
  const hadFocus = figure.querySelector("svg") === document.activeElement;
  const open = figure.querySelector("details")?.open;
  figure.replaceChildren(legend(series), picture, said, behind(title, series, show, open));
  if (hadFocus) picture.focus();
}

// Figures of /v1/quality/curve as runs: one for each version, and another where some other version answered in between.
export function runs(figures) {
  const points = figures.map((p) => ({ version: p.version, at: Date.parse(p.at), value: p.ratio, low: p.low, high: p.high, note: `n ${count(p.images)}, version ${p.version}` }));
  const latest = new Map(), found = []; // version → its run
  for (const p of points) {
    const run = latest.get(p.version), before = run?.at(-1).at;
    if (run && !points.some((other) => other.version !== p.version && other.at > before && other.at < p.at)) run.push(p);
    else {
      latest.set(p.version, [p]);
      found.push(latest.get(p.version));
    }
  }
  return found;
}

const told1 = (p, show) => `${show(p.value)}${p.low === undefined ? "" : ` (${show(p.low)} … ${show(p.high)})`}${p.note ? `, ${p.note}` : ""}`;

function summary(series, show) {
  const last = series.map((one) => [one.name, one.runs.at(-1)?.at(-1)]).filter(([, p]) => p);
  return `Latest: ${last.map(([name, p]) => `${name} ${told1(p, show)}`).join("; ")}.`;
}

function drawnRun(run, x, y) {
  const line = run.map((p) => `${x(p.at).toFixed(1)},${y(p.value).toFixed(1)}`).join(" ");
  const banded = run.filter((p) => p.low !== undefined && p.low !== null);
  const edge = (points, name) => points.map((p) => `${x(p.at).toFixed(1)},${y(p[name]).toFixed(1)}`);
  const alone = run.length === 1;
  const last = run.at(-1);
  return [
    banded.length > 1 && svg("polygon", { class: "band", points: [...edge(banded, "high"), ...edge([...banded].reverse(), "low")].join(" ") }),
    banded.length === 1 && svg("line", { class: "whisker", x1: x(banded[0].at), x2: x(banded[0].at), y1: y(banded[0].low), y2: y(banded[0].high) }),
    !alone && svg("polyline", { class: "line", points: line }),
    svg("circle", { class: "dot", cx: x(last.at), cy: y(last.value), r: 3 }),
  ].filter(Boolean);
}

function marked(mark, x, next) {
  const at = x(mark.at), room = !next || x(next.at) - at > NAME;
  return svg("g", { class: "mark" }, svg("line", { x1: at, x2: at, y1: TOP, y2: HIGH - BOTTOM }),
    room && svg("text", { x: at, y: TOP - 4, "text-anchor": "middle" }, mark.text), svg("title", {}, `${mark.text}: ${mark.title ?? clock(mark.at, true)}`));
}

function grid(bottom, top, y, wide, show) {
  const steps = [0, 0.25, 0.5, 0.75, 1].map((part) => bottom + part * (top - bottom));
  return steps.map((value) => svg("g", { class: "grid" }, svg("line", { x1: LEFT, x2: wide - RIGHT, y1: y(value), y2: y(value) }),
    svg("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, show(value))));
}

function times(from, to, x) {
  const days = to - from > 3 * 86400e3;
  return [0, 1, 2, 3, 4].map((k) => {
    const at = from + ((to - from) * k) / 4;
    const text = days ? clock(at, true).slice(5, 10) : to - from < 600e3 ? (k === 4 ? "now" : `−${minutes(to - at)}`) : clock(at);
    return svg("text", { class: "time", x: x(at), y: HIGH - 6, "text-anchor": k === 0 ? "start" : k === 4 ? "end" : "middle" }, text);
  });
}

const minutes = (ms) => `${Math.floor(ms / 60e3)}:${String(Math.round((ms / 1000) % 60)).padStart(2, "0")}`;

const legend = (series) => el("p", { class: "legend", "aria-hidden": "true" },
  series.filter((one) => one.runs.length).map((one) => el("span", { class: one.colour }, el("i", {}), one.name)));

// The table is made when somebody opens it: it may have a thousand rows.
function behind(title, series, show, open) {
  const details = el("details", {}, el("summary", {}, "As a table"));
  const fillIn = () => {
    if (!details.open || details.querySelector("table")) return;
    const rows = series.flatMap((one) => one.runs.flat().map((p) => [p.at, [clock(p.at, true), one.name, show(p.value),
      p.low === undefined ? "" : `${show(p.low)} … ${show(p.high)}`, p.note ?? ""]]));
    const sorted = rows.sort((a, b) => b[0] - a[0]).map(([, row]) => row);
    details.append(el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": `${title}, as a table` },
      table(title, ["time", "what", "value", "95 % interval", ""], sorted, { numeric: [2, 3] })));
  };
  details.addEventListener("toggle", fillIn);
  if (open) details.open = true;
  return details;
}

// The next of 1, 2, 5, 10, 20, 50 … that is not below.
function nice(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((k) => k * power).find((one) => one >= value * 0.999);
}

// A bar of 0 … 100 % with its interval, for a cell of a table.
export function bar(low, ratio, high) {
  const x = (share) => 1 + 98 * share;
  return svg("svg", { class: "bar", viewBox: "0 0 100 12", width: 72, height: 12, "aria-hidden": "true", preserveAspectRatio: "none" },
    svg("rect", { class: "track", x: 1, y: 5, width: 98, height: 2 }),
    svg("rect", { class: "range", x: x(low), y: 3, width: Math.max(1, x(high) - x(low)), height: 6, rx: 3 }),
    svg("circle", { class: "dot", cx: x(ratio), cy: 6, r: 3 }));
}
