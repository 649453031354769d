// New trainings: a data set checked, then settings; and a training's state, samples and output.

import { announce, attempt, get, post } from "/page/api.js";
import { $, element, options } from "/page/dom.js";

const MILLISECONDS_BETWEEN_LOOKS = 1000;
const MAX_STEPS_SHOWN = 4;
const OPEN = ["waiting", "running", "stopping"];
let choices = null;
let onStarted = () => {};

export function setUp(started) {
  onStarted = started;
  $("train-new").addEventListener("click", () => attempt(toggle));
  $("train-data").addEventListener("change", () => attempt(showLastCheck));
  $("train-check").addEventListener("click", () => attempt(check));
  $("train-check-stop").addEventListener("click", () => attempt(async () => showCheck(await post("/v1/checks/stop", { data: $("train-data").value }))));
  $("train-kind").addEventListener("change", showKind);
  $("train-recipe").addEventListener("change", showDefaults);
  $("train-preview").addEventListener("change", showKind);
  $("train").addEventListener("submit", (event) => { event.preventDefault(); attempt(start); });
}

/** Offer new trainings if the studio has data sets. */
export function offer(trainings) {
  $("train-new").hidden = trainings.data_folder === null;
  $("train-off").hidden = trainings.data_folder !== null;
}

function open(isOpen) {
  $("train").hidden = !isOpen;
  $("train-new").setAttribute("aria-expanded", String(isOpen));
  $("train-new").textContent = isOpen ? "Close" : "New training";
}

async function toggle() {
  const opening = $("train").hidden;
  open(opening);
  if (!opening) return;
  choices = await get("/v1/trainings");
  options($("train-data"), choices.data.map((name) => [name, name || `${choices.data_folder} (the whole folder)`]), $("train-data").value || choices.data.find(Boolean));
  options($("train-recipe"), choices.recipes.map(({ name }) => [name, name || "default settings"]), "");
  options($("train-clip"), [["", ""], ...choices.clips.map((name) => [name, name])], "");
  options($("train-graft"), choices.grafts.map((name) => [name, name]), choices.grafts.at(-1));
  options($("train-preview"), [["", "none"], ...choices.grafts.map((name) => [name, `by the bridge of ${name}`])], "");
  showDefaults();
  await showLastCheck();
  $("train-data").focus();
}

async function showLastCheck() {
  showCheck(null);
  const data = $("train-data").value;
  const found = await get(`/v1/checks?data=${encodeURIComponent(data)}`).catch(() => null);  // never checked
  if (data === $("train-data").value) await follow(found);
}

async function check() {
  await follow(await post("/v1/checks", { data: $("train-data").value }));
}

/** Show a check until it has ended, or another data set is chosen. */
async function follow(found) {
  showCheck(found);
  if (!found || !OPEN.includes(found.state)) return;
  setTimeout(() => attempt(async () => {
    if (found.data === $("train-data").value && !$("train").hidden) await follow(await get(`/v1/checks?data=${encodeURIComponent(found.data)}`));
  }), MILLISECONDS_BETWEEN_LOOKS);
}

function showCheck(found) {
  const isOpen = Boolean(found) && OPEN.includes(found.state);
  $("train-check").hidden = isOpen;
  $("train-check").textContent = found ? "Check again" : "Check";
  $("train-check-stop").hidden = !isOpen;
  $("train-settings").hidden = !found?.result;
  $("train-findings").replaceChildren(...(found ? findings(found) : [element("p.hint", {}, "A check says what is in the data set, and what is odd in it, before you train.")]));
}

function findings(found) {
  if (OPEN.includes(found.state)) return [element("p.hint", {}, `Checking. ${found.output.at(-1) || ""}`)];
  if (!found.result) return [element("p.hint.warn", {}, found.error || "The check was stopped.")];
  const { counts, format, split_rule: rule, findings: odd, excluded, notes } = found.result;
  const rows = Object.entries(counts).map(([split, { images }]) => `${images.toLocaleString("en")} ${split}`);
  const parts = [element("p", {}, `${rows.join(", ")} images. Read as ${format}; splits: ${rule}.`)];
  const said = [
    ...odd.map(({ summary, effect }) => element("li", {}, element("strong", {}, summary), element("span", {}, effect))),
    ...excluded.map(({ kind, reason, count }) => element("li", {}, element("strong", {}, `Left out: ${count.toLocaleString("en")} ${kind}${count === 1 ? "" : "s"}`), element("span", {}, reason))),
    ...notes.map((note) => element("li", {}, element("span", {}, note))),
  ];
  parts.push(said.length ? element("ul.findings", {}, ...said) : element("p.hint", {}, "Nothing odd was found."));
  const address = `/v1/checks/sheet?data=${encodeURIComponent(found.data)}`;
  parts.push(element("details", {}, element("summary", {}, "Samples and examples"),
    element("iframe", { src: address, title: "Samples and examples of the data set", sandbox: "", loading: "lazy" })));
  announce(`Check finished, ${odd.length} findings`);
  return parts;
}

function showKind() {
  const kind = $("train-kind").value;
  for (const node of document.querySelectorAll("[data-kinds]")) node.hidden = !node.dataset.kinds.split(" ").includes(kind);
  $("train-samples").hidden = kind !== "finetune" || !$("train-preview").value;
  showDefaults();
}

/** Show the recipe's values, which count where a field is left empty. */
function showDefaults() {
  const recipe = choices?.recipes.find(({ name }) => name === $("train-recipe").value);
  if (!recipe) return;
  const values = recipe[$("train-kind").value];
  $("train-epochs").placeholder = values.num_epochs;
  $("train-rate").placeholder = values.learning_rate;
  $("train-batch").placeholder = values.batch_size;
  $("train-clip").options[0].textContent = `the recipe’s: ${recipe.clip}`;
  $("train-base").textContent = `Base: ${recipe.base}.`;
}

async function start() {
  const number = (id) => ($(id).value === "" ? null : Number($(id).value));
  const lines = (id) => $(id).value.split("\n").map((line) => line.trim()).filter(Boolean);
  const kind = $("train-kind").value;
  const body = {
    name: $("train-name").value, kind, data: $("train-data").value, recipe: $("train-recipe").value,
    num_epochs: number("train-epochs"), learning_rate: number("train-rate"), batch_size: number("train-batch"),
    on_damaged: $("train-damaged").value,
  };
  if (kind !== "distill") body.clip = $("train-clip").value;
  if (kind === "bridge") body.allow_few_captions = $("train-few").checked;
  if (kind === "distill") Object.assign(body, { graft: $("train-graft").value || "", new_words: lines("train-words") });
  if (kind === "finetune" && $("train-preview").value) {
    Object.assign(body, { preview_graft: $("train-preview").value, preview_steps: number("train-every") ?? 50, prompts: lines("train-prompts") });
  }
  const training = await post("/v1/trainings", body);
  open(false);
  $("train-name").value = "";
  await onStarted(training.name);
}

/** A training's state, what can be done about it, its samples and its output. */
export function panel(training, onChange, isOutputOpen) {
  const act = (what) => attempt(async () => {
    await post(`/v1/trainings/${training.name}/${what}`, {});
    await onChange();
  });
  const button = (text, what) => {
    const made = element("button", { type: "button", "data-act": what }, text);
    made.addEventListener("click", () => act(what));
    return made;
  };
  const buttons = [];
  if (training.state === "waiting" || training.state === "running") buttons.push(button("Stop", "stop"));
  if (training.state === "stopping") buttons.push(button("Stop at once", "stop"));
  if (training.can_resume) buttons.push(button("Resume", "resume"));
  const isBad = training.state === "failed" || training.state === "interrupted";
  const parts = [element("div.bar", {}, element(`p.hint${isBad ? ".warn" : ""}`, {}, describe(training)), ...buttons)];
  for (const { step, images } of training.samples.slice(0, MAX_STEPS_SHOWN)) parts.push(samples(training.name, step, images));
  if (training.output.length) parts.push(element("details", { open: isOutputOpen ?? training.state === "failed" }, element("summary", {}, "Output"), element("pre", {}, training.output.join("\n"))));
  return element("div.job", {}, ...parts);
}

function samples(name, step, count) {
  const images = Array.from({ length: count }, (_, number) => element("img", {
    src: `/v1/trainings/${name}/samples/${step}/${number}`, alt: `Sample ${number + 1} after step ${step}`, loading: "lazy",
  }));
  return element("figure", {}, element("div.samples", {}, ...images), element("figcaption.hint", {}, `Samples after step ${step}`));
}

function describe({ state, error, output, data }) {
  const last = output.at(-1) || "";
  const texts = {
    waiting: "Waiting for the images that are being generated.",
    running: `At work; images wait. ${last}`,
    stopping: "Stopping; its state is being saved.",
    done: "Trained.",
    stopped: "Stopped. It can go on from its last state.",
    interrupted: `Interrupted: ${error}. It can go on from its last state.`,
    failed: `Failed: ${error}`,
  };
  return `${texts[state]}${data && state === "done" ? ` Data set: ${data}.` : ""}`;
}
