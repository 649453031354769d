// Jobs: create one, follow it through server-sent events, show its images as they come.

import { announce, attempt, get, parse, post } from "/page/api.js";
import { $, WHY, counted, element, frame } from "/page/dom.js";
import { showSlide } from "/page/compare.js";
import { openDetail } from "/page/gallery.js";
import { kindOf, ready } from "/page/parts.js";
import { estimateSoon, request } from "/page/settings.js";

const MILLISECONDS_BETWEEN_ASKS = 2000;
let current = null;
let stream = null;
let shown = "";
let pace = null;

export function setUp() {
  $("settings").addEventListener("submit", (event) => { event.preventDefault(); begin(); });
  $("settings").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("settings").requestSubmit();
  });
  $("cancel").addEventListener("click", () => attempt(async () => show(await post(`/v1/jobs/${current}/cancel`, {}))));
  const last = sessionStorage.getItem("job");
  if (last) get(`/v1/jobs/${last}`).then(watch, () => sessionStorage.removeItem("job"));
}

async function begin() {
  await attempt(async () => {
    await ready();
    const job = await post("/v1/jobs", request());
    sessionStorage.setItem("job", job.id);
    watch(job);
    // On a small screen the images would appear out of sight.
    if ($("result").getBoundingClientRect().top > innerHeight * 0.8) $("result").scrollIntoView();
  });
}

function watch(job) {
  stream?.close();
  current = job.id;
  shown = "";
  show(job);
  if (!isOpen(job)) return;
  const source = new EventSource(`/v1/jobs/${job.id}/events`);
  stream = source;
  source.addEventListener("job", (event) => {
    const changed = parse(event.data);
    if (changed.id !== current) return;
    if (!isOpen(changed)) source.close();
    show(changed);
  });
  source.addEventListener("error", () => {
    // A lost connection comes back by itself; a refusal (too many listeners, an unknown job) is final.
    if (source.readyState === EventSource.CLOSED && job.id === current) setTimeout(() => ask(job.id), MILLISECONDS_BETWEEN_ASKS);
  });
}

/** Poll a job whose events are not available, until it has ended. */
async function ask(id) {
  if (id !== current) return;
  const job = await attempt(() => get(`/v1/jobs/${id}`));
  if (!job || id !== current) return;
  show(job);
  if (isOpen(job)) setTimeout(() => ask(id), MILLISECONDS_BETWEEN_ASKS);
}

const isOpen = (job) => job.state === "queued" || job.state === "running";

function show(job) {
  $("empty").hidden = true;
  $("job").hidden = false;
  $("cancel").hidden = !isOpen(job);
  $("job-progress").classList.toggle("done", !isOpen(job));
  $("job-progress").value = job.steps ? job.step / job.steps : 0;
  $("job-text").textContent = describe(job);
  if (!isOpen(job)) {
    announce($("job-text").textContent);
    estimateSoon();
  }
  // Only rebuild what has changed: focus and images stay where they are.
  const look = JSON.stringify(job.images.map((one) => [one.id, one.state, one.preview_step]));
  if (look === shown) return;
  shown = look;
  const focused = document.activeElement?.closest?.("[data-image]")?.dataset.image;
  $("images").replaceChildren(layout(job));
  if (focused) document.querySelector(`[data-image="${focused}"] button`)?.focus();
}

/** Time left at the pace since the first step that was seen, as loading takes none of the others'. */
function timeLeft({ id, step, steps }) {
  if (step && pace?.id !== id) pace = { id, step, time: performance.now() };
  const done = step && step - pace.step;
  return done > 1 ? `, ${Math.ceil((performance.now() - pace.time) / done * (steps - step) / 1000)} s left` : "";
}

function describe(job) {
  if (job.state === "queued") return job.images_before ? `Waiting, ${counted(job.images_before)} before yours` : "Waiting";
  if (job.state === "running") return `Generating, step ${job.step} of ${job.steps}${timeLeft(job)}`;
  if (job.state !== "done") return job.state === "failed" ? `Failed: ${job.error}` : WHY[job.state];
  const failed = job.images.filter((one) => one.state !== "ok").length;
  const seconds = (job.ended - job.started).toFixed(1);
  const count = job.images.length;
  return `${count - failed} of ${count} generated in ${seconds} s`;
}

function layout(job) {
  if (job.kind === "grid") return grid(job.images);
  const figures = element(`div.outputs${job.images.length === 1 ? ".one" : ""}`, {}, ...job.images.map((one) => figure(one, job.kind)));
  if (job.kind !== "compare") return figures;
  const finished = job.images.filter((one) => one.state === "ok");
  if (isOpen(job) || finished.length < 2) return figures;
  return element("div.compared", {}, showSlide(finished), figures);
}

function figure(image, kind) {
  const name = kind === "compare" ? image.model : `Seed ${image.settings.seed}`;
  return element("figure", { "data-image": image.id }, frame(image, openDetail),
    element("figcaption.hint", {}, [name, kindOf(image.settings), ...image.notes].filter(Boolean).join(" · ")));
}

/** A table by the two settings that change, read from the images themselves. */
function grid(images) {
  const values = (image) => ({ ...image.settings, model: image.model });
  const names = ["prompt", "negative_prompt", "model", "seed", "num_inference_steps", "guidance_scale", "scheduler"]
    .map((name) => [name, [...new Set(images.map((one) => String(values(one)[name])))]])
    .filter(([, found]) => found.length > 1);
  const width = columnsOf(images, values, names);
  const [columnName] = names.find(([name]) => String(values(images[0])[name]) !== String(values(images[Math.min(1, images.length - 1)])[name])) || [""];
  const rows = [];
  for (let start = 0; start < images.length; start += width) rows.push(images.slice(start, start + width));
  const label = (name, image) => (name ? `${NAMES[name]}${String(values(image)[name]) || "nothing"}` : "");
  const rowNames = names.map(([name]) => name).filter((name) => name !== columnName);
  const head = element("tr", {}, element("th"), ...rows[0].map((one) => element("th", { scope: "col" }, label(columnName, one))));
  const body = rows.map((row) => element("tr", {},
    element("th", { scope: "row" }, rowNames.map((name) => label(name, row[0])).join(", ")),
    ...row.map((one) => element("td", { "data-image": one.id }, frame(one, openDetail)))));
  return element("div.scroll", {}, element("table.grid", {}, element("thead", {}, head), element("tbody", {}, ...body)));
}

const NAMES = {
  prompt: "", negative_prompt: "without ", model: "", seed: "seed ", num_inference_steps: "steps ", guidance_scale: "CFG ", scheduler: "",
};

/** Images per row: until what changes fastest starts over. */
function columnsOf(images, values, names) {
  const fastest = names.find(([name]) => images.length > 1 && String(values(images[0])[name]) !== String(values(images[1])[name]));
  return fastest ? fastest[1].length : 1;
}
