// Live traffic from /metrics: what its counters gained between two looks.

import { chart } from "./charts.js";
import { $, count, el, fill, milliseconds, number, percent } from "./dom.js";

const KEPT_MS = 5 * 60e3;
const SAMPLE = /^(lifelist_(?:requests_total|request_duration_seconds_bucket|inflight_requests|queued_images|live_version_info|replicas_reporting|database_writable))(\{.*\})? (\S+)$/gm;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;

// The samples that the page uses: [{name, labels, value, series}].
export function parse(text) {
  return [...text.matchAll(SAMPLE)].map(([, name, braces, value]) => ({
    name, series: `${name}${braces ?? ""}`, value: Number(value),
    labels: Object.fromEntries([...(braces ?? "").matchAll(LABEL)].map(([, k, v]) => [k, v])),
  }));
}

// The value below which a share of the counts lies, by straight lines within buckets, as Prometheus does it. counts:
// {upper bound: count up to it}, "+Inf" included.
export function quantile(share, counts) {
  const bounds = Object.keys(counts).map((bound) => [bound === "+Inf" ? Infinity : Number(bound), counts[bound]]).sort((a, b) => a[0] - b[0]);
  const all = bounds.at(-1)?.[1] ?? 0;
  if (!all) return null;
  const k = bounds.findIndex(([, upTo]) => upTo >= share * all);
  const [bound, upTo] = bounds[k];
  const [lower, before] = k ? bounds[k - 1] : [0, 0];
  return bound === Infinity ? lower : lower + ((bound - lower) * (share * all - before)) / (upTo - before);
}

export class Traffic {
  constructor() {
    this.counters = new Map(); // series → its value when it was last there
    this.looks = []; // {at, rate, errors, refused, p50, p99}, the latest last
    this.last = null;
  }

  // Takes in one look; gives what is live.
  look(text, at) {
    const samples = parse(text);
    const gained = (sample) => {
      const before = this.counters.get(sample.series) ?? 0; // a series that was not there began at 0
      this.counters.set(sample.series, sample.value);
      return sample.value >= before ? sample.value - before : sample.value; // it fell: a replica started anew
    };
    let all = 0, errors = 0, refused = 0, inflight = 0, queued = 0, live = null, replicas = 0, writable = true;
    const buckets = {};
    for (const sample of samples) {
      const { name, labels, value } = sample;
      if (name === "lifelist_requests_total") {
        const more = gained(sample);
        all += more;
        if (labels.code >= "500") errors += more;
        else if (labels.code >= "400") refused += more;
      } else if (name === "lifelist_request_duration_seconds_bucket") {
        buckets[labels.le] = (buckets[labels.le] ?? 0) + gained(sample);
      } else if (name === "lifelist_inflight_requests") inflight += value;
      else if (name === "lifelist_queued_images") queued += value;
      else if (name === "lifelist_replicas_reporting") replicas = value;
      else if (name === "lifelist_database_writable") writable = value === 1;
      else if (name === "lifelist_live_version_info") live = { ...labels, version: Number(labels.version) };
    }
    const seconds = this.last === null ? null : (at - this.last) / 1000;
    this.last = at;
    if (seconds) {
      const share = (part) => (all ? part / all : 0);
      this.looks.push({ at, rate: all / seconds, requests: all, errors: share(errors), refused: share(refused), p50: quantile(0.5, buckets), p99: quantile(0.99, buckets) });
      this.looks = this.looks.filter((look) => at - look.at <= KEPT_MS);
    }
    this.now = { inflight, queued, replicas, writable };
    return live;
  }

  draw() {
    const latest = this.looks.at(-1);
    const tile = (name, value, hint) => el("div", { class: "tile" }, el("span", { class: "what" }, name), el("strong", { "data-figure": name }, value), el("small", {}, hint ?? ""));
    fill($("traffic-now"),
      tile("requests a second", latest ? number(latest.rate) : "–"),
      tile("errors", latest ? percent(latest.errors) : "–", latest ? `${percent(latest.refused)} refused` : ""),
      tile("p50", milliseconds(latest?.p50)), tile("p99", milliseconds(latest?.p99)),
      tile("in flight", count(this.now?.inflight), `${count(this.now?.queued)} images wait`),
      tile("replicas", count(this.now?.replicas)));
    const to = this.last ?? Date.now(), from = to - KEPT_MS;
    const line = (name, colour, field) => ({ name, colour, runs: runs(this.looks, field) });
    const empty = "The first figures come with the second look, in a few seconds.";
    chart($("chart-rate"), { title: "Requests a second", from, to, show: number, empty, series: [line("requests a second", "one", "rate")] });
    chart($("chart-latency"), { title: "Time to answer", from, to, show: milliseconds, series: [line("p50", "one", "p50"), line("p99", "two", "p99")],
      empty: this.looks.length ? "No request came yet while this page was open." : empty });
    chart($("chart-errors"), { title: "Requests that failed", from, to, show: (v) => percent(v, v < 0.1 ? 1 : 0), empty, range: [0, Math.max(0.05, ...this.looks.flatMap((l) => [l.errors, l.refused]))],
      series: [line("errors (5xx)", "bad", "errors"), line("refused (4xx)", "four", "refused")] });
  }
}

// Looks one after another that have a figure; without requests there is no latency, and a gap.
function runs(looks, field) {
  const found = [[]];
  for (const look of looks) {
    if (look[field] === null) found.push([]);
    else found.at(-1).push({ at: look.at, value: look[field], note: `${count(look.requests)} requests` });
  }
  return found.filter((run) => run.length);
}
