// Images to label, one at a time, by a key. A verdict is held back for a moment, so that it can be taken back: the
// server deletes the image with it. What the server refuses comes again, with what it said.

import { picture, post } from "./api.js";
import { $, ago, count, el, fill, number, percent } from "./dom.js";

export const ASKED = 20; // images at once; there may be thousands
const UNDO_MS = 8000;
const NEAR = 200; // pixels from what is in sight
const WHY = {
  unknown: (row) => `looks unknown: ${number(row.unknown_score)}`,
  disagree: () => "the two answers disagree", // linear and nearest mean
  margin: (row) => `low margin: ${percent(row.margin)}`,
};
const KINDS = { linear: "linear", nearest_mean: "nearest mean" };
const same = (name) => name.normalize("NFC").trim();

export class Review {
  constructor(changed) {
    this.changed = changed; // called when the server took a verdict, or refused one
    this.queue = []; // that come next
    this.current = null; // the image that is judged; `ready` once it can be seen
    this.held = null; // {row, sent, told, timer}: the latest verdict, which was not sent yet
    this.judged = new Set(); // ids, so that what was asked before does not bring them again
    this.problems = new Map(); // id → what the server said against the verdict
    this.names = null; // by which classes are known
    this.part = $("review-part");
    new IntersectionObserver(() => this.load(), { rootMargin: `${NEAR}px` }).observe(this.part);
    this.part.addEventListener("keydown", (event) => this.key(event));
    this.part.addEventListener("click", (event) => event.target.closest("button, input, label, form") || $("review-image").focus({ preventScroll: true }));
    $("review-form").addEventListener("submit", (event) => {
      event.preventDefault();
      if (same($("review-name").value)) this.named(same($("review-name").value));
    });
    for (const [id, name] of [["review-name", "input"], ["review-example", "change"]]) $(id).addEventListener(name, () => this.hint());
    $("review-skip").addEventListener("click", () => this.skip());
    $("review-undo").addEventListener("click", () => this.undo());
    addEventListener("pagehide", () => this.flush());
    document.addEventListener("visibilitychange", () => document.hidden && this.flush());
  }

  // Whether it is for whoever looks.
  allow(may) {
    this.part.hidden = !may;
    if (!may) this.forget();
  }

  forget() {
    this.queue = [];
    this.current = null;
    $("review-image").replaceChildren();
  }

  // found: GET /v1/review. The image that is shown stays, whatever came: nothing changes under somebody's fingers.
  set(found) {
    this.found = found;
    if (!this.names) return; // the page is not filled yet: what is in sight now may not be when it is
    this.waiting = found.open - found.images.filter((row) => this.judged.has(row.prediction_id)).length;
    const fresh = found.images.filter((row) => !this.judged.has(row.prediction_id) && row.prediction_id !== this.current?.prediction_id);
    const again = fresh.filter((row) => this.problems.has(row.prediction_id));
    this.queue = [...again, ...fresh.filter((row) => !this.problems.has(row.prediction_id))];
    if (!this.current) return this.next();
    this.draw();
    this.load();
  }

  // classes: GET /v1/classes
  know(found) {
    const first = !this.names;
    const known = found.classes.filter((one) => !one.retired && one.merged_into === null);
    this.names = new Set([...found.classes, ...found.former].flatMap((one) => [one.name, String(one.id), ...one.aliases]));
    fill($("review-classes"), known.map((one) => el("option", { value: one.name })));
    if (first && this.found) this.set(this.found);
    else this.hint();
  }

  // ------------------------------------------------------------------------------------------------- what is shown

  next(row = this.queue.shift() ?? null) {
    this.current = row;
    this.ready = false;
    $("review-name").value = "";
    this.draw();
    this.load();
  }

  draw() {
    const { found, current: row, part } = this;
    const hadFocus = part.contains(document.activeElement);
    $("review-count").textContent = found.open || found.labelled || found.skipped
      ? `${count(Math.max(0, this.waiting))} wait, ${count(found.labelled)} labelled and ${count(found.skipped)} skipped of late` : "";
    fill($("review-none"), this.none());
    $("review-stage").hidden = !row;
    $("review-keys").hidden = !row;
    if (row) this.drawRow(row);
    this.hint();
    $("review-undo").hidden = !this.held;
    const focused = document.activeElement;
    if (hadFocus && (focused === part || !part.contains(focused) || !focused.offsetParent)) (row ? $("review-image") : part).focus({ preventScroll: true });
  }

  none() {
    const setting = el("code", {}, "review.keep_images");
    if (!this.found.keeps_images && !this.current) return el("p", { class: "empty" }, "No image is kept: the setting ", setting, " is off. With it on, those that would help most if a person labelled them are kept.");
    if (!this.found.keeps_images) return el("p", { class: "note" }, "The setting ", setting, " is off: no more are kept, and what waits is deleted within the hour.");
    return this.current ? null : el("p", { class: "empty" }, `Nothing waits. Images that the model is not sure of come here as they are asked, at most ${count(this.found.most)} of them.`);
  }

  drawRow(row) {
    const problem = this.problems.get(row.prediction_id);
    const calibrated = row.suggestions.some((one) => one.probability !== null);
    const other = KINDS[row.answer === "linear" ? "nearest_mean" : "linear"];
    const answered = row.suggestions.find((one) => one.id === row.predicted.id)?.probability ?? null;
    fill($("review-facts"),
      problem && el("p", { class: "note" }, `It comes again: ${problem}`),
      el("p", {}, "Answered ", el("strong", {}, row.predicted.name), answered === null ? "" : ` (${percent(answered)})`,
        el("span", { class: "quiet" }, ` by version ${row.version}, ${KINDS[row.answer]}, ${ago(row.at)}`)),
      el("p", {}, "Kept because: ", row.why.map((why) => [el("span", { class: "tag busy" }, WHY[why]?.(row) ?? why), " "])));
    const told = (one) => (one.probability !== null ? percent(one.probability) : calibrated ? `by ${other}` : "");
    fill($("review-choices"), row.suggestions.slice(0, 9).map((one, k) => el("button",
      { type: "button", "data-key": `review-${k}`, "aria-keyshortcuts": String(k + 1), css: { "--share": one.probability ?? 0 } },
      el("kbd", { "aria-hidden": "true" }, String(k + 1)), el("span", {}, one.name), el("small", {}, told(one)))));
    for (const [k, button] of [...$("review-choices").querySelectorAll("button")].entries()) button.onclick = () => this.judge({ class: row.suggestions[k].id }, row.suggestions[k].name);
    $("review-stage").setAttribute("aria-busy", String(!this.ready));
    $("review-stage").classList.toggle("busy", !this.ready);
  }

  // What a name that is being typed will do.
  hint() {
    const name = same($("review-name").value);
    const isNew = name && this.names && !this.names.has(name);
    const hint = !isNew ? "" : $("review-example").checked ? `No class is named “${name}”: it becomes a new one.` : `No class is named “${name}”. Tick the box to make it a new one.`;
    if ($("review-hint").textContent !== hint) $("review-hint").textContent = hint;
  }

  // The picture, once it is in sight; only then can the image be judged.
  async load() {
    const row = this.current, place = this.part.getBoundingClientRect();
    const inSight = place.height > 0 && place.bottom > -NEAR && place.top < innerHeight + NEAR;
    if (!row || !inSight || this.ready || this.loading === row) return;
    this.loading = row;
    const image = el("img", { alt: `an image that was answered ${row.predicted.name}` });
    let address = null;
    try {
      address = URL.createObjectURL(await picture(`v1/review/${encodeURIComponent(row.prediction_id)}/image`));
      image.src = address;
      await image.decode();
    } catch (error) {
      if (row === this.current) this.lost(row, error);
      return;
    } finally {
      if (address) URL.revokeObjectURL(address); // it is decoded, or never will be
      if (this.loading === row) this.loading = null;
    }
    if (row !== this.current) return;
    $("review-image").replaceChildren(image);
    this.ready = true;
    this.draw();
  }

  // An image that cannot be shown: somebody else judged it, it was deleted, or the server is away.
  lost(row, error) {
    const gone = [404, 409].includes(error.status);
    if (!gone) return this.say(`The image cannot be shown: ${error.message}`, "review-problem"); // the next look tries again
    this.judged.add(row.prediction_id);
    this.waiting -= 1;
    this.next();
  }

  // -------------------------------------------------------------------------------------------------- what is done

  key(event) {
    if (event.ctrlKey || event.altKey || event.metaKey || event.isComposing) return;
    const typing = event.target.matches("input:not([type=checkbox])");
    const digit = /^[1-9]$/.test(event.key) ? event.key : /^Digit([1-9])$/.exec(event.code)?.[1]; // where digits need shift
    const name = typing ? event.key : digit ? "digit" : event.key.toLowerCase();
    const act = (typing ? { Escape: () => $("review-image").focus() } : {
      digit: () => $("review-choices").querySelectorAll("button")[digit - 1]?.click(),
      s: () => this.skip(), u: () => this.undo(), t: () => $("review-name").focus(), e: () => $("review-example").click(),
    })[name];
    if (!act) return;
    event.preventDefault();
    if (!event.repeat) act();
  }

  named(name) {
    this.judge({ class: name }, name);
  }

  skip() {
    this.judge({ skip: true }, null);
  }

  judge(verdict, name) {
    const row = this.current;
    if (!row || !this.ready) return; // nobody can tell what is not to be seen yet
    this.flush();
    const example = !verdict.skip && $("review-example").checked;
    const told = verdict.skip ? "Skipped" : `Labelled ${name}${example ? ", and kept as an example" : ""}`;
    this.judged.add(row.prediction_id);
    this.problems.delete(row.prediction_id);
    this.waiting -= 1;
    this.held = { row, name, told, sent: example ? { ...verdict, example } : verdict, timer: setTimeout(() => this.flush(), UNDO_MS) };
    this.say(`${told}.`);
    this.next();
  }

  undo() {
    if (!this.held) return;
    const { row, told, timer } = this.held;
    clearTimeout(timer);
    this.held = null;
    this.judged.delete(row.prediction_id);
    this.waiting += 1;
    if (this.current) this.queue.unshift(this.current);
    this.say(`Taken back: ${told[0].toLowerCase()}${told.slice(1)}.`);
    this.next(row);
  }

  // Sends what is held back, if anything is; also as the page goes.
  async flush() {
    if (!this.held) return;
    const { row, name, told, sent, timer } = this.held;
    clearTimeout(timer);
    this.held = null;
    $("review-undo").hidden = true;
    try {
      const { judged, example } = await post(`v1/review/${encodeURIComponent(row.prediction_id)}`, sent, { keepalive: true });
      if (this.held === null) this.say([`${told}.`, judged && `The answer, ${judged.predicted.name}, was ${judged.correct ? "right" : "wrong"}.`, example?.role && `It is an example (${example.role}).`].filter(Boolean).join(" "));
      this.say("", "review-problem");
    } catch (error) {
      const message = error.status ? error.message : "the server does not answer";
      this.problems.set(row.prediction_id, `“${name ?? "skip"}” was not taken: ${message}`);
      this.judged.delete(row.prediction_id);
      this.waiting += 1;
      this.queue.unshift(row);
      this.say(`Not taken for ${name === null ? "the image that was skipped" : `“${name}”`}: ${message}. If the image still waits, it comes again.`, "review-problem");
      if (this.current) this.draw();
      else this.next();
    }
    this.changed();
  }

  say(message, id = "review-said") {
    if ($(id).textContent !== message) $(id).textContent = message;
  }
}
