// How right the answers are: now, over time, old classes against new, bias to new classes, confusions, drift, alarms.

import { bar, chart, runs } from "./charts.js";
import { $, ago, between, count, el, fill, number, percent, table, when } from "./dom.js";

export const SOURCES = {
  feedback: ["labels", "one", "true classes that users sent; they report mistakes more readily"],
  audit: ["audit", "two", "labels of answers that were drawn at random, each by how many it stands for"],
  probe: ["probe", "three", "gate images sent through the live path"],
  estimated: ["estimated", "four", "from the confidence of answers, without any label"],
};
const GROUPS = ["all", "old", "new"];
const BIAS = {
  linear_uncorrected: "held-out images, before correction", linear: "held-out images, after correction",
  nearest_mean: "held-out images, by nearest mean", probe: "gate images, live", feedback: "labels, live",
};
const share = (value) => percent(value, 0);

// found: GET /v1/quality. A table for the version that is chosen, else live.
export function drawNow(found, version) {
  const of = version ?? found.live;
  const versions = [...new Set([found.live, ...found.figures.map((one) => one.version)])].sort((a, b) => b - a);
  const choose = $("version");
  fill(choose, versions.map((one) => el("option", { value: one, selected: one === of }, `version ${one}${one === found.live ? " (live)" : ""}`)));
  choose.value = String(of);
  const rows = Object.entries(SOURCES).map(([source, [name, colour, hint]]) => {
    const cells = GROUPS.map((group) => cell(found.figures.find((one) => one.version === of && one.source === source && one.group === group), source));
    return [el("span", { class: `key ${colour}`, title: hint }, el("i", {}), name), ...cells];
  });
  const unseen = found.figures.find((one) => one.version === of && one.group === "unseen" && one.source === "feedback");
  fill($("accuracy-now"),
    table(`Share of right answers of version ${of}, by source and group of classes`, ["source", "all classes", "old classes", "new classes"], rows),
    unseen && el("p", { class: "quiet" }, `${count(unseen.images)} labels were of classes that version ${of} could not name; they count for no group.`),
    found.doubts.filter((one) => one.version === of).map((one) => el("p", { class: "note" }, `Doubt the estimate: ${one.message}`)));
}

function cell(figure, source) {
  if (!figure || figure.ratio === null) return el("span", { class: "quiet" }, "–");
  return el("span", { class: "figure", "data-figure": `${source}/${figure.group}`, "data-ratio": figure.ratio, "data-images": figure.images },
    el("strong", {}, percent(figure.ratio)), bar(figure.low, figure.ratio, figure.high),
    el("small", {}, `${between(figure.low, figure.high)}, n ${count(figure.images)}`));
}

// curve: GET /v1/quality/curve. A line for each source and version; the line breaks where another version answers.
export function drawCurves(curve, marks, source) {
  const from = Date.parse(curve.since), to = Date.parse(curve.until);
  const lines = (group, one) => runs(curve.points.filter((p) => p.source === one && p.group === group && p.ratio !== null));
  const within = { marks, from, to, show: share, empty: "Nothing was judged, probed or estimated in this time yet." };
  const all = Object.entries(SOURCES).map(([one, [name, colour]]) => ({ name, colour, runs: lines("all", one) }));
  chart($("chart-accuracy"), { ...within, title: "Share of right answers, by source", series: all, range: [lowest(all), 1] });
  const groups = [["old classes", "one", "old"], ["new classes", "two", "new"]].map(([name, colour, group]) => ({ name, colour, runs: lines(group, source) }));
  const told = SOURCES[source][0];
  chart($("chart-groups"), { ...within, title: `Old and new classes, by ${told}`, series: groups, range: [lowest(groups), 1],
    empty: `There are no figures of old and new classes by ${told} in this time.` });
}

// Where the axis begins: at 0, or higher where all is well above, so that a loss of points is seen. Bands may go beyond.
function lowest(series) {
  const values = series.flatMap((one) => one.runs.flat().map((p) => p.value));
  return Math.max(0, Math.floor(5 * (Math.min(1, ...values) - 0.05)) / 5);
}

export function drawBias(found) {
  const rows = found.rows.map((row) => [BIAS[row.of], percent(row.shown),
    el("span", { class: "figure", "data-figure": `bias/${row.of}`, "data-ratio": row.ratio }, el("strong", {}, percent(row.ratio)), bar(row.low, row.ratio, row.high), el("small", {}, `${between(row.low, row.high)}, n ${count(row.images)}`)),
    verdict(row)]);
  fill($("bias"), rows.length
    ? table(`How often version ${found.version} answers a new class`, ["of", "shown", "answered", ""], rows, { numeric: [1] })
    : el("p", { class: "empty" }, found.new.length ? "No held-out image or probe tells of it yet." : "No class is new: all came with the base."));
}

function verdict(row) {
  if (row.low > row.shown) return el("span", { class: "tag bad" }, `${(row.ratio / row.shown).toFixed(2)} × too often`);
  if (row.high < row.shown) return el("span", { class: "tag" }, `${(row.ratio / row.shown).toFixed(2)} ×, too seldom`);
  return el("span", { class: "tag good" }, "no bias to be seen");
}

export function drawConfusions(found) {
  const rows = found.pairs.map((pair) => [pair.truth.name, pair.predicted.name, count(pair.images),
    el("span", { class: "figure" }, percent(pair.ratio), bar(pair.low, pair.ratio, pair.high), el("small", {}, between(pair.low, pair.high)))]);
  fill($("confusions"),
    el("p", { class: "quiet" }, found.images ? `By ${found.source === "probe" ? "probes" : "labels"}: version ${found.version} is right on ${count(found.right)} of ${count(found.images)} images.` : "Nothing was counted in this time yet."),
    rows.length ? table(`What version ${found.version} takes for what`, ["is", "taken for", "images", "of its class"], rows, { numeric: [2] }) : null);
}

const TESTS = {
  embedding: "embeddings", confidence: "confidence", margin: "margin", unknown: "unknown score", classes: "shares of classes",
};

export function drawDrift(found) {
  const verdict = (one) => (one.rejected ? el("span", { class: "tag bad" }, "differs") : el("span", { class: "tag good" }, "as before"));
  const rows = found.tests.map((one) => [TESTS[one.test] ?? one.test, one.window, verdict(one), one.p_value < 0.0001 ? "< 0.0001" : one.p_value.toFixed(4),
    number(one.score), count(one.images), when(one.at)]);
  fill($("drift"), rows.length
    ? table(`Whether what version ${found.live} is asked looks as what it was held against`, ["test", "window", "", "p", "score", "images", "at"], rows, { numeric: [3, 4, 5] })
    : el("p", { class: "empty" }, "No window of answers is full yet."));
}

export function drawAlarms(alarms) {
  const raised = alarms.filter((one) => one.state === "raised");
  const rows = raised.map((one) => el("li", { class: "alarm" }, el("strong", {}, one.name), ` ${one.message} `, el("small", {}, "since ", when(one.since), ` (${ago(one.since)})`)));
  const quiet = alarms.length - raised.length;
  fill($("alarms"), rows.length ? el("ul", { class: "plain" }, rows) : el("p", { class: "empty" }, "Nothing is wrong that is watched."),
    quiet ? el("p", { class: "quiet" }, `${quiet} other${quiet === 1 ? " is" : "s are"} quiet: ${alarms.filter((one) => one.state !== "raised").map((one) => one.name).join(", ")}.`) : null);
  const badge = $("alarm-count");
  badge.hidden = !raised.length;
  badge.textContent = raised.length === 1 ? "1 alarm" : `${raised.length} alarms`;
}

export function drawNotices(notices) {
  const rows = notices.map((one) => el("li", { class: `notice ${one.kind}` }, when(one.at), el("span", { class: "tag" }, one.kind), ` ${one.message}`));
  fill($("notices"), rows.length ? el("ol", { class: "plain" }, rows) : el("p", { class: "empty" }, "Nothing happened yet."));
}
