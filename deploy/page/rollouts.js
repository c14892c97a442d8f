// Increments with their steps and progress, as they go; versions, and the buttons that move what is live.

import { events, post } from "./api.js";
import { $, ago, count, el, fill, took, when } from "./dom.js";

const STEPS = ["intake", "train", "export", "parity", "gate", "quantise", "publish", "swap", "tidy"];
const ENDED = ["done", "rejected", "failed", "cancelled"];
const FOLLOWED = 2; // at once: a browser has six connections to a server
const SHOWN = 10; // increments, the latest first

export class Increments {
  constructor(changed) {
    this.changed = changed; // called when an increment moves on
    this.found = [];
    this.followed = new Map(); // id → AbortController
    this.progress = new Map(); // id → the latest epoch
  }

  set(found) {
    this.found = found;
    const running = found.filter((one) => !ENDED.includes(one.state) && one.state !== "queued");
    for (const one of running.slice(0, FOLLOWED)) if (!this.followed.has(one.id)) this.follow(one.id);
    this.draw();
  }

  async follow(id) {
    const stop = new AbortController();
    this.followed.set(id, stop);
    const tell = ({ event, data }) => {
      if (event === "epoch") {
        this.progress.set(id, data);
        this.draw();
      } else if (event === "state" || event === "ended") {
        this.progress.delete(id);
        this.changed();
      }
    };
    try {
      await events(`v1/increments/${id}/events`, tell, { signal: stop.signal });
      this.changed();
    } catch {
      // the server is away, which the next look tells, and then takes the stream up again
    }
    this.followed.delete(id);
  }

  stop() {
    for (const one of this.followed.values()) one.abort();
  }

  draw() {
    const rows = this.found.slice(-SHOWN).reverse().map((one) => this.one(one));
    fill($("increments"), rows.length ? rows : el("p", { class: "empty" }, "No increment was started yet."));
  }

  one(found) {
    const kind = found.state === "done" ? "good" : ENDED.includes(found.state) ? "bad" : "busy";
    const names = found.classes.map((one) => one.name);
    const told = names.length > 6 ? `${names.slice(0, 6).join(", ")} and ${names.length - 6} more` : names.join(", ");
    const progress = this.progress.get(found.id) ?? found.progress;
    return el("article", { class: "increment", "aria-label": `increment ${found.id}` },
      el("h3", {}, `Increment ${found.id} `, el("span", { class: `tag ${kind}` }, found.state)),
      el("p", {}, told, el("span", { class: "quiet" }, ` by ${found.method}${found.version ? `, version ${found.version}` : ""}, ${ago(found.updated_at)}`)),
      el("ol", { class: "steps", "aria-label": "steps" }, this.steps(found)),
      found.state === "train" && progress ? this.bar(progress) : null,
      found.reason ? el("p", { class: "note" }, found.reason) : null,
      found.warnings.map((message) => el("p", { class: "quiet" }, `warning: ${message}`)));
  }

  steps(found) {
    const taken = new Map(found.steps.map((one) => [one.state, one]));
    return STEPS.concat([...taken.keys()].filter((name) => !STEPS.includes(name))).map((name) => {
      const step = taken.get(name), ended = step?.ended;
      const state = ended ? "done" : name === found.state ? "now" : step ? "cut" : "waits";
      const title = ended ? `took ${took((Date.parse(ended) - Date.parse(step.began)) / 1000)}` : { now: "under way", cut: "not ended", waits: "not begun" }[state];
      return el("li", { class: state, title, "aria-current": state === "now" ? "step" : undefined }, name, el("span", { class: "quiet-to-eyes" }, `, ${title}`));
    });
  }

  bar(progress) {
    const told = `${progress.phase}: epoch ${progress.epoch} of ${progress.epochs}, ${count(Math.round(progress.images_per_second))} images a second, ${took(progress.seconds_left)} left`;
    return el("div", { class: "progress" }, el("progress", { max: progress.epochs, value: progress.epoch, "aria-label": "training" }), el("small", {}, told));
  }
}

export function drawVersions(found, may, moved) {
  const previous = found.previous;
  const rows = [...found.versions].reverse().map((one) => el("tr", { class: one.version === found.live ? "live" : undefined, "data-version": one.version },
    el("th", { scope: "row" }, String(one.version), one.version === found.live && el("span", { class: "tag good" }, "live"), one.version === previous && el("span", { class: "tag" }, "previous")),
    el("td", {}, one.kind), el("td", {}, one.method), el("td", { class: "n" }, count(one.classes)), el("td", {}, one.passed ? "passed" : el("span", { class: "tag bad" }, "refused")), el("td", {}, when(one.created_at)),
    may ? el("td", { class: "act" }, one.version === found.live ? "" : el("button", { "data-key": `promote-${one.version}`, onclick: () => promote(one, found.live, moved) }, "promote")) : null));
  const head = ["version", "kind", "method", "classes", "gate", "made"];
  fill($("versions"), el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "versions" },
    el("table", {}, el("caption", { class: "quiet-to-eyes" }, "All versions, the latest first"),
      el("thead", {}, el("tr", {}, head.map((name) => el("th", { scope: "col", class: name === "classes" ? "n" : undefined }, name)), may ? el("th", { scope: "col", class: "act" }, el("span", { class: "quiet-to-eyes" }, "action")) : null)),
      el("tbody", {}, rows))));
  const back = $("roll-back");
  back.hidden = !may || previous === null;
  back.textContent = `Roll back to version ${previous}`;
  back.onclick = () => ask(`Make version ${previous} live again, in place of version ${found.live}?`, `Roll back to ${previous}`, () => post("v1/rollback"), moved);
}

function promote(one, live, moved) {
  const doubt = one.passed ? "" : " The gate refused it; it is promoted all the same.";
  ask(`Make version ${one.version} live on every replica, in place of version ${live}?${doubt}`, `Promote ${one.version}`,
    () => post(`v1/versions/${one.version}:promote`, { force: !one.passed }), moved);
}

// Asks before anything moves; what the server says against it stays in sight.
function ask(question, verb, act, moved) {
  const dialog = $("sure"), go = $("sure-go"), said = $("sure-said");
  $("sure-question").textContent = question;
  said.textContent = "";
  go.textContent = verb;
  go.disabled = false;
  go.onclick = async () => {
    go.disabled = true;
    said.textContent = "Under way …";
    try {
      await act();
      dialog.close();
      await moved();
    } catch (error) {
      said.textContent = error.message;
      go.disabled = false;
    }
  };
  dialog.showModal();
}
