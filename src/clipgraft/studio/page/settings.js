// The form: settings of a job, what the model reads of the prompt, the number of images.

import { announce, attempt, get, post, tell, upload } from "/page/api.js";
import * as parts from "/page/parts.js";
import { $, counted, element, later, options } from "/page/dom.js";

const LABELS = {
  prompt: "Prompt", negative_prompt: "Negative prompt", model: "Model", seed: "Seed", num_inference_steps: "Steps", guidance_scale: "Guidance scale",
  scheduler: "Sampler",
};
const EXAMPLES = {
  seed: () => "0\n1\n2", num_inference_steps: () => "5\n10\n25", guidance_scale: () => "1\n3\n5", scheduler: () => schedulers.slice(0, 2).join("\n"),
  prompt: () => $("prompt").value, negative_prompt: () => "", model: () => comparable($("model").value).join("\n"), "": () => "",
};
let models = [];
let schedulers = [];
let samplers = {};  // A1111's names of schedulers
let mode = "generate";
const isOwn = { steps: false, guidance: false };  // typed or loaded, not the model's default

export async function setUp() {
  const { axes, limits } = await loadModels();
  const choices = [["", "none"], ...axes.map((name) => [name, LABELS[name]])];
  options($("row-axis"), choices, "seed");
  options($("column-axis"), choices, "guidance_scale");
  $("scheduler").replaceChildren(...samplerGroups());
  const most = { "num-images": limits.max_images_per_job, steps: limits.max_steps, width: limits.max_side, height: limits.max_side };
  for (const [id, value] of Object.entries(most)) $(id).max = value;
  for (const id of ["prompt", "negative-prompt"]) $(id).maxLength = limits.max_prompt_characters;
  for (const side of ["row", "column"]) {
    const fill = () => { $(`${side}-values`).value = EXAMPLES[$(`${side}-axis`).value](); };
    $(`${side}-axis`).addEventListener("change", fill);
    fill();
  }
  couple("steps");
  couple("guidance");
  $("model").addEventListener("change", () => { suggestDefaults(); readPrompt(); describeModel(); });
  $("prompt").addEventListener("input", readPromptSoon);
  for (const id of ["prompt-syntax", "long-prompts"]) $(id).addEventListener("change", readPrompt);
  $("settings").addEventListener("input", estimateSoon);
  $("settings").addEventListener("change", estimateSoon);
  $("load-file").addEventListener("change", () => loadFile($("load-file").files[0]));
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => { event.preventDefault(); loadFile(event.dataTransfer.files[0]); });
  readPrompt();
  await parts.setUp(estimateSoon, (model) => models.find(({ id }) => id === model)?.width);
}

/** Samplers by family: there are more than anyone reads through. */
function samplerGroups() {
  const families = { "DPM++": /^dpm\+\+/, "DPM2": /^dpm2/, "Euler, Heun, LMS": /^(euler|heun|lms)/, "For few steps": /^(lcm|tcd)/, Others: /./ };
  const familyOf = (name) => Object.keys(families).find((family) => families[family].test(name));
  return Object.keys(families).map((label) => element("optgroup", { label },
    ...schedulers.filter((name) => familyOf(name) === label).map((name) => new Option(samplerName(name), name))));
}

async function loadModels() {
  const answer = await get("/v1/models");
  schedulers = answer.schedulers;
  samplers = answer.samplers;
  models = answer.data.filter((row) => row.does.includes("images"));
  const chosen = models.some((row) => row.id === $("model").value) ? $("model").value : answer.default;
  $("vae").hidden = !answer.vae;
  $("vae").textContent = `VAE: ${answer.vae}, in place of the model's own`;
  options($("model"), models.map((row) => [row.id, row.id]), chosen);
  const compared = comparable(answer.default);
  $("compared-models").replaceChildren(...models.map(({ id, description }) => {
    const box = element("input", { type: "checkbox", value: id, checked: compared.includes(id), name: "compared" });
    return element("label", {}, box, element("span", {}, `${id} `, element("small", {}, description)));
  }));
  suggestDefaults();
  describeModel();
  return answer;
}

function describeModel() {
  $("model-what").textContent = models.find(({ id }) => id === $("model").value)?.description ?? "";
}

export function setMode(name) {
  mode = name;
  for (const part of document.querySelectorAll("#settings [data-only]")) part.hidden = !part.dataset.only.split(" ").includes(mode);
  $("submit").textContent = { generate: "Generate", compare: "Compare", grid: "Generate grid" }[mode];
  estimateSoon();
}

/** A1111's name of a scheduler. */
export const samplerName = (name) => samplers[name] || name;

/** Body for /v1/jobs from the form. */
export function request() {
  const number = (id) => Number($(id).value);
  const body = {
    prompt: $("prompt").value,
    negative_prompt: $("negative-prompt").value,
    num_inference_steps: number("steps"),
    guidance_scale: number("guidance"),
    scheduler: $("scheduler").value,
    prompt_syntax: $("prompt-syntax").value,
    long_prompts: $("long-prompts").value,
    clip_skip: number("clip-skip"),
    dynamic_prompts: $("dynamic-prompts").checked,
    width: number("width"),
    height: number("height"),
    ...parts.values(),
    client: clientName(),
  };
  if ($("seed").value.trim()) body.seed = BigInt($("seed").value.trim());
  if (mode === "compare") body.models = [...document.querySelectorAll("[name=compared]:checked")].map((box) => box.value);
  else body.models = [$("model").value].filter(Boolean);
  if (mode === "generate") body.num_images_per_prompt = number("num-images");
  if (mode === "grid") body.axes = ["row", "column"].map(axis).filter((one) => one.name);
  return body;
}

/** Fill the form with an image's settings. */
export function fill(settings, model) {
  $("prompt").value = settings.prompt;
  $("negative-prompt").value = settings.negative_prompt || "";
  $("seed").value = String(settings.seed);
  $("num-images").value = 1;
  if (settings.num_inference_steps) setBoth("steps", settings.num_inference_steps);
  if (settings.guidance_scale) setBoth("guidance", settings.guidance_scale);
  isOwn.steps = isOwn.guidance = true;
  $("width").value = settings.width || "";
  $("height").value = settings.height || "";
  $("scheduler").value = settings.scheduler;
  $("prompt-syntax").value = settings.prompt_syntax || "plain";
  $("long-prompts").value = settings.long_prompts || "cut";
  $("clip-skip").value = settings.clip_skip || 0;
  $("dynamic-prompts").checked = false;  // the prompt is one that was drawn
  if (models.some((row) => row.id === model)) $("model").value = model;
  describeModel();
  readPrompt();
  attempt(() => parts.fill(settings));
  announce("Settings loaded.");
}

async function loadFile(file) {
  $("load-file").value = "";
  if (!file) return;
  await attempt(async () => {
    const settings = await upload("/v1/images/settings", file);
    fill(settings, settings.model);
    if (!["#generate", "#compare", "#grid"].includes(location.hash)) location.hash = "#generate";
    tell(settings.notes.join("; "));
  });
}

function axis(side) {
  const name = $(`${side}-axis`).value;
  const lines = $(`${side}-values`).value.replace(/\n$/, "").split("\n").map((line) => line.trim())
    .filter((line) => line || name === "negative_prompt");  // where empty is a value
  const kinds = { seed: BigInt, num_inference_steps: Number, guidance_scale: Number };
  return { name, values: lines.map((line) => (kinds[name] || String)(line)) };
}

function comparable(model) {
  const group = model.split("/").slice(0, -1).join("/");
  return models.map((row) => row.id).filter((id) => id.startsWith(`${group}/`));
}

function suggestDefaults() {
  const row = models.find(({ id }) => id === $("model").value);
  if (row && !isOwn.steps) setBoth("steps", row.num_inference_steps);
  if (row && !isOwn.guidance) setBoth("guidance", row.guidance_scale);
}

function couple(id) {
  $(`${id}-slider`).addEventListener("input", () => { $(id).value = $(`${id}-slider`).value; isOwn[id] = true; });
  $(id).addEventListener("input", () => { $(`${id}-slider`).value = $(id).value; isOwn[id] = true; });
}

function setBoth(id, value) {
  $(id).value = $(`${id}-slider`).value = value;
  $(id).value = value;
}

async function readPrompt() {
  const prompt = $("prompt").value;
  try {
    const reading = await post("/v1/prompts", {
      prompt, model: mode === "compare" ? "" : $("model").value,
      prompt_syntax: $("prompt-syntax").value, long_prompts: $("long-prompts").value,
    });
    if ($("prompt").value !== prompt) return;
    const parts = [`${reading.num_tokens} of ${reading.num_chunks * reading.max_tokens} tokens`];
    if (reading.cut_off) parts.push(`cut off: “${reading.cut_off.trim()}”`);
    if (reading.unknown_words.length) parts.push(`not in the vocabulary: ${reading.unknown_words.join(", ")}`);
    $("prompt-reading").textContent = parts.join(" · ");
    $("prompt-reading").classList.toggle("warn", parts.length > 1);
  } catch (error) {
    $("prompt-reading").textContent = error.message;
  }
}

async function estimate() {
  if (!models.length) return;  // they are on their way
  const changing = mode === "grid" ? [$("row-axis").value, $("column-axis").value] : [];
  for (const [name, id] of [["seed", "seed"], ["steps", "steps"], ["guidance_scale", "guidance"]]) {
    $(id).disabled = changing.includes(name);  // set by an axis
    if ($(`${id}-slider`)) $(`${id}-slider`).disabled = $(id).disabled;
  }
  let text = "";
  $("estimate").classList.remove("warn");
  try {
    const { num_images: count, images_before: before, training } = await post("/v1/estimates", request());
    text = counted(count) + (before ? `, ${counted(before)} before yours` : "") + (training ? `, after training ${training}` : "");
  } catch (error) {
    text = error.message;
    $("estimate").classList.add("warn");
  }
  $("estimate").textContent = text;
}

function clientName() {
  let name = localStorage.getItem("client");
  if (!name) {
    name = Array.from(crypto.getRandomValues(new Uint8Array(8)), (byte) => byte.toString(16).padStart(2, "0")).join("");
    localStorage.setItem("client", name);
  }
  return name;
}

const readPromptSoon = later(250, readPrompt);

/** Show the number of images. */
export const estimateSoon = later(300, estimate);
