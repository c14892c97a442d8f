// What is asked when, and what becomes of it.

import { Refusal, get, key, text } from "./api.js";
import { ClassTable } from "./classes.js";
import { $, clock, count, fill } from "./dom.js";
import * as quality from "./quality.js";
import { ASKED, Review } from "./review.js";
import { Increments, drawVersions } from "./rollouts.js";
import { Traffic } from "./traffic.js";

const TRAFFIC_S = 2, STATE_S = 4, INCREMENTS_S = 10, REVIEW_S = 10, QUALITY_S = 15, RETRY_S = 5;
const NOTICES = 50;

const traffic = new Traffic();
const classes = new ClassTable();
const increments = new Increments(() => [state, rollouts].forEach(soon));
const review = new Review(() => soon(images));
const marks = []; // swaps: {at, text, title}
let live = null; // the version that answers, as the replicas say
let may = false; // move what is live, and see images of users
let chosen = null; // the version whose figures are shown; null: live
let locked = false; // until a key is entered
let seen = {}; // the latest answers, for what is drawn anew without asking

// ------------------------------------------------------------------------------------------------- what is asked

async function lookAtTraffic() {
  const found = traffic.look(await text("metrics"), Date.now());
  traffic.draw();
  if (traffic.now.writable) troubles.delete(traffic);
  else troubles.set(traffic, "The database takes no write: it is locked, full or away. Queries are answered; labels and examples are not taken, and figures stand still.");
  const version = found?.version ?? null;
  say("live", version === null ? "no version is live" : `version ${version}`);
  say("live-more", found ? `${count(Number(found.classes))} classes, answers by ${found.answer.replace("_", " ")}, ${found.provider} ${found.precision}` : "");
  if (version !== live) {
    live = version;
    soon(state);
    soon(figures);
  }
}

async function lookAtState() {
  const [alarms, notices, versions] = await Promise.all([get("v1/alarms"), get("v1/notices", { limit: NOTICES }), get("v1/versions")]);
  quality.drawAlarms(alarms.alarms);
  quality.drawNotices(notices.notices);
  drawVersions(versions, may, moved);
  const swaps = notices.notices.filter((one) => ["swap", "rollback"].includes(one.kind)).reverse(); // as they came
  const known = JSON.stringify(marks);
  marks.splice(0, marks.length, ...swaps.map((one) => ({ at: Date.parse(one.data.at ?? one.at), text: `v${one.version}`, title: one.message })));
  if (JSON.stringify(marks) !== known) drawQuality();
}

async function lookAtIncrements() {
  increments.set((await get("v1/increments")).increments);
}

async function lookAtImages() {
  if (may) review.set(await get("v1/review", { limit: ASKED }));
}

async function lookAtFigures() {
  const since = $("range").value, source = $("source").value;
  const earlier = { "1h": "2h", "6h": "12h", "24h": "48h", "7d": "14d", "30d": "60d" }[since];
  const [now, curve, drift, bias, confusions, known, of, before] = await Promise.all([
    get("v1/quality", { since }), get("v1/quality/curve", { since }), get("v1/drift"), get("v1/quality/bias", { since, version: chosen }),
    get("v1/quality/confusions", { since, version: chosen, source: source === "probe" || source === "estimated" ? "probe" : "feedback", limit: 30 }),
    get("v1/classes"), get("v1/quality", { since, group: "class", source }), get("v1/quality", { since: earlier, until: since, group: "class", source }),
  ]);
  seen = { ...seen, now, curve };
  quality.drawDrift(drift);
  quality.drawBias(bias);
  quality.drawConfusions(confusions);
  if (seen.keptOf !== known.version) {
    seen.kept = (await get(`v1/versions/${known.version}/exemplars`)).classes;
    seen.keptOf = known.version;
  }
  classes.set(known, seen.kept, of.figures, before.figures, source, since);
  drawQuality();
  if (may) review.know(known);
}

function drawQuality() {
  if (!seen.now) return;
  quality.drawNow(seen.now, chosen);
  quality.drawCurves(seen.curve, marks, $("source").value);
}

// -------------------------------------------------------------------------------------------------- when it is asked

// Work that is done again and again, never twice at once, and not while nobody looks.
function every(seconds, work) {
  const task = { work, seconds, timer: null, running: false, again: false };
  task.run = async () => {
    clearTimeout(task.timer);
    if (task.running) {
      task.again = true;
      return;
    }
    task.running = true;
    let pause = seconds;
    try {
      if (!document.hidden && !locked) await work();
      troubles.delete(task);
    } catch (error) {
      pause = Math.max(seconds, RETRY_S);
      troubled(error, task);
    }
    said();
    task.running = false;
    task.timer = setTimeout(task.run, task.again ? 0 : 1000 * pause);
    task.again = false;
  };
  return task;
}

const soon = (task) => void task.run();

async function moved() {
  await lookAtTraffic();
  soon(state);
  soon(figures);
}

function say(id, message) {
  if ($(id).textContent !== message) $(id).textContent = message; // said again, it would be read out again
}

// What went wrong when it was done last, by task; of the traffic itself, what it says of the database.
const troubles = new Map();

function said() {
  const [message = ""] = troubles.values();
  $("trouble").hidden = !message;
  say("trouble-said", message);
}

function troubled(error, task) {
  const known = troubles.get(task);
  if (!(error instanceof Refusal)) troubles.set(task, known ?? `The server does not answer since ${clock(Date.now())}; it is asked again. What is shown is old.`);
  else if (error.status === 401) {
    locked = true;
    askForKey(error.message);
  } else troubles.set(task, error.status === 403 ? `${error.message}. The page needs a key that may read.` : error.message);
  if (!(error instanceof Refusal || error instanceof TypeError)) console.error(error); // a mistake of the page itself
}

// ---------------------------------------------------------------------------------------------------------- keys

async function enter() {
  const caller = await get("v1/caller");
  may = caller.roles.includes("operate");
  review.allow(may);
  $("key-button").textContent = caller.name ? `key: ${caller.name}` : "key";
  $("key-button").hidden = !key.get() && !caller.problem; // where none is needed, nothing is said of keys
  if (caller.problem) {
    askForKey(key.get() ? caller.problem : "");
    return false;
  }
  return true;
}

function askForKey(problem) {
  $("key-said").textContent = problem;
  $("key-forget").hidden = !key.get();
  if (!$("key").open) $("key").showModal();
}

async function start() {
  try {
    if (!(await enter())) return;
  } catch (error) {
    troubled(error, start);
    said();
    setTimeout(start, 1000 * RETRY_S);
    return;
  }
  locked = false;
  troubles.clear();
  for (const task of tasks) soon(task);
}

const state = every(STATE_S, lookAtState);
const rollouts = every(INCREMENTS_S, lookAtIncrements);
const images = every(REVIEW_S, lookAtImages);
const figures = every(QUALITY_S, lookAtFigures);
const tasks = [every(TRAFFIC_S, lookAtTraffic), state, rollouts, images, figures];

$("key-button").addEventListener("click", () => askForKey(""));
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  review.flush(); // with the key that it was given with
  key.set($("key-text").value.trim());
  $("key-text").value = "";
  $("key").close();
  start();
});
$("key-forget").addEventListener("click", () => {
  review.flush();
  key.set("");
  increments.stop();
  location.reload();
});
for (const button of document.querySelectorAll("dialog [data-close]")) button.addEventListener("click", () => button.closest("dialog").close());
for (const id of ["range", "source"]) $(id).addEventListener("change", () => soon(figures));
$("version").addEventListener("change", () => {
  chosen = Number($("version").value) === seen.now?.live ? null : Number($("version").value);
  drawQuality();
  soon(figures);
});
addEventListener("pagehide", () => increments.stop()); // a page that is kept to be gone back to would keep its connections
document.addEventListener("visibilitychange", () => document.hidden || tasks.forEach(soon));
let resized;
addEventListener("resize", () => {
  cancelAnimationFrame(resized);
  resized = requestAnimationFrame(() => {
    traffic.draw();
    drawQuality();
  });
});
fill($("source"), Object.entries(quality.SOURCES).map(([value, [name]]) => Object.assign(document.createElement("option"), { value, textContent: name })));
$("source").value = "probe";
start();
