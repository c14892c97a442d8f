// The table of classes. It may have thousands of rows: only those in sight are in the page.

import { bar, chart, runs } from "./charts.js";
import { get, picture } from "./api.js";
import { $, between, count, el, percent, signed } from "./dom.js";

const GRACE_MS = 5000; // an image may still be loading from an address that nobody needs any more
const ROW = 52; // pixels, as style.css has it
const BEYOND = 6; // rows that are made above and below those in sight
const COLUMNS = { name: (row) => row.name.toLowerCase(), increment: (row) => row.increment, images: (row) => row.images, ratio: (row) => row.ratio, trend: (row) => row.trend };

// By how much recall differs from before, with the hybrid score interval (Newcombe 1998): few images rise and fall by chance.
function change(before, now) {
  if ((before?.ratio ?? null) === null || (now?.ratio ?? null) === null) return { trend: null };
  const trend = now.ratio - before.ratio;
  return { trend, least: trend - Math.hypot(now.ratio - now.low, before.high - before.ratio), most: trend + Math.hypot(now.high - now.ratio, before.ratio - before.low) };
}

export class ClassTable {
  constructor() {
    this.rows = [];
    this.shown = [];
    this.sort = { by: "ratio", down: false };
    this.pictures = new Map(); // "version/class" → promise of an address, or null
    this.scroller = $("class-rows");
    this.scroller.addEventListener("scroll", () => this.ask(), { passive: true });
    new ResizeObserver(() => this.ask()).observe(this.scroller);
    $("class-filter").addEventListener("input", () => this.arrange());
    for (const button of document.querySelectorAll("#classes-table th button")) button.addEventListener("click", () => this.order(button.dataset.by));
  }

  // classes: GET /v1/classes; figures and before: of group class, of this time and of as long before.
  set(classes, exemplars, figures, before, source, span) {
    if (this.version !== classes.version) this.forget();
    this.kept = new Map(exemplars.map((one) => [one.id, one.images]));
    const of = (found) => new Map(found.filter((one) => one.version === classes.version && one.source === source).map((one) => [one.class_id, one]));
    const now = of(figures), then = new Map();
    for (const one of before.filter((each) => each.source === source)) if (!then.has(one.class_id)) then.set(one.class_id, one); // the latest version that answered then
    const latest = Math.max(0, ...classes.classes.map((one) => one.increment));
    this.version = classes.version;
    this.source = source;
    this.span = span;
    const rows = classes.classes.filter((one) => !one.retired && one.merged_into === null).map((one) => {
      const figure = now.get(one.id), earlier = then.get(one.id);
      return { ...one, isNew: latest > 0 && one.increment === latest, images: figure?.images ?? 0, ratio: figure?.ratio ?? null, low: figure?.low, high: figure?.high,
        ...change(earlier, figure) };
    });
    if (JSON.stringify(rows) === JSON.stringify(this.rows)) return; // what is shown stays as it is
    this.rows = rows;
    this.arrange();
  }

  forget() { // pictures of another version
    const letGo = (address) => address && setTimeout(() => URL.revokeObjectURL(address), GRACE_MS);
    for (const found of this.pictures.values()) found.then(letGo);
    this.pictures.clear();
    this.rows = [];
  }

  order(by) {
    this.sort = { by, down: this.sort.by === by ? !this.sort.down : by === "images" };
    this.arrange();
  }

  arrange() {
    const asked = $("class-filter").value.trim().toLowerCase();
    const { by, down } = this.sort, value = COLUMNS[by];
    const known = (row) => value(row) !== null;
    const compare = (a, b) => (value(a) < value(b) ? -1 : value(a) > value(b) ? 1 : a.id - b.id);
    const chosen = asked ? this.rows.filter((row) => row.name.toLowerCase().includes(asked) || String(row.id) === asked) : this.rows;
    const sorted = chosen.filter(known).sort(compare);
    this.shown = [...(down ? sorted.reverse() : sorted), ...chosen.filter((row) => !known(row))]; // what is not known comes last
    for (const th of document.querySelectorAll("#classes-table th[data-by]")) th.setAttribute("aria-sort", th.dataset.by === by ? (down ? "descending" : "ascending") : "none");
    $("classes-table").setAttribute("aria-rowcount", this.shown.length + 1);
    $("class-count").textContent = asked ? `${count(this.shown.length)} of ${count(this.rows.length)} classes` : `${count(this.rows.length)} classes`;
    this.drawn = null;
    this.draw();
  }

  ask() { // at most one drawing for each frame
    this.asked ??= requestAnimationFrame(() => {
      this.asked = null;
      this.draw();
    });
  }

  draw() {
    const { scrollTop, clientHeight } = this.scroller;
    const first = Math.max(0, Math.min(Math.floor(scrollTop / ROW) - BEYOND, this.shown.length - 1));
    const last = Math.min(this.shown.length, Math.ceil((scrollTop + clientHeight) / ROW) + BEYOND);
    const range = `${first}-${last}`;
    if (this.drawn === range) return;
    this.drawn = range;
    const space = (rows) => (rows > 0 ? el("tr", { "aria-hidden": "true", class: "space" }, el("td", { colspan: 6, css: { height: `${rows * ROW}px` } })) : []);
    const body = $("classes-table").tBodies[0];
    const focused = body.contains(document.activeElement) ? document.activeElement.dataset.class : null;
    body.replaceChildren(...[space(first), this.shown.slice(first, last).map((row, k) => this.row(row, first + k)), space(this.shown.length - last)].flat());
    if (focused) body.querySelector(`[data-class="${focused}"]`)?.focus({ preventScroll: true });
  }

  row(row, place) {
    const [kind, arrow] = row.most < 0 ? ["falls", "▼ "] : row.least > 0 ? ["rises", "▲ "] : ["quiet", ""]; // else it may be chance
    const trend = row.trend === null ? el("span", { class: "quiet" }, "–")
      : [el("span", { class: kind, "data-trend": row.trend }, arrow + signed(100 * row.trend)), el("br", {}), el("small", {}, `${signed(100 * row.least)} … ${signed(100 * row.most)}`)];
    const recall = row.ratio === null ? el("span", { class: "quiet" }, "–")
      : el("span", { class: "figure" }, el("strong", {}, percent(row.ratio)), bar(row.low, row.ratio, row.high), el("small", {}, `${between(row.low, row.high)}, n ${count(row.images)}`));
    return el("tr", { "aria-rowindex": place + 2, "data-row": row.id, "data-ratio": row.ratio, "data-images": row.images },
      el("th", { scope: "row" }, el("button", { class: "link", "data-class": row.id, onclick: () => this.detail(row) }, row.name), row.isNew && el("span", { class: "tag" }, "new"),
        row.state === "enrolled" && el("span", { class: "tag" }, "enrolled")),
      el("td", { class: "pictures" }, this.exemplars(row)),
      el("td", {}, recall), el("td", { class: "n" }, count(row.images)), el("td", { class: "n" }, trend), el("td", { class: "n" }, String(row.increment)));
  }

  // A strip of its exemplars, once it has been in sight for a moment: scrolling by asks for nothing.
  exemplars(row) {
    if (!this.kept.has(row.id)) return null;
    const image = el("img", { alt: "", height: 40, hidden: true });
    const id = `${this.version}/${row.id}`;
    const show = (found) => {
      if (!found) return;
      image.src = found;
      image.alt = `the best of ${count(this.kept.get(row.id))} exemplars of ${row.name}`;
      image.hidden = false;
    };
    if (this.pictures.has(id)) this.pictures.get(id).then(show);
    else setTimeout(() => {
      if (!image.isConnected) return;
      if (!this.pictures.has(id)) this.pictures.set(id, strip(this.version, row.id));
      this.pictures.get(id).then(show);
    }, 120);
    return image;
  }

  async detail(row) {
    const dialog = $("class-detail");
    $("class-detail-title").textContent = `${row.name} (class ${row.id})`;
    if (!dialog.open) dialog.showModal();
    const figure = $("chart-class");
    delete figure.dataset.drawn;
    const curve = await get("v1/quality/curve", { since: this.span, group: "class", class_id: row.id });
    const found = curve.points.filter((p) => p.source === this.source && p.ratio !== null);
    chart(figure, { title: `Recall of ${row.name}`, from: Date.parse(curve.since), to: Date.parse(curve.until), show: (v) => percent(v, 0), range: [0, 1],
      series: [{ name: "recall", colour: "one", runs: runs(found) }], empty: "Nothing of this class in this time." });
    const place = $("class-exemplars");
    place.replaceChildren();
    const strips = this.kept.has(row.id) && (await strip(this.version, row.id, 12));
    if (strips) place.append(el("img", { src: strips, alt: `the best exemplars of ${row.name}` }));
  }
}

// The address of a picture; null where all those exemplars were deleted since.
async function strip(version, id, most = 5) {
  try {
    return URL.createObjectURL(await picture(`v1/versions/${version}/exemplars/${id}`, { most }));
  } catch (refusal) {
    if (refusal.status !== 404) console.warn(refusal.message);
    return null;
  }
}
