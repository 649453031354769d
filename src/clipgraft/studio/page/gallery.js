// Generated images: found by words of their prompts, opened with their settings.

import { attempt, get, remove } from "/page/api.js";
import { $, element, frame, later } from "/page/dom.js";
import { kindOf, nameOf, setImage } from "/page/parts.js";
import { fill, samplerName } from "/page/settings.js";

const PAGE_SIZE = 48;
let oldest = null;
let opened = null;

export function setUp() {
  $("gallery-search").addEventListener("submit", (event) => { event.preventDefault(); show(); });
  $("gallery-words").addEventListener("input", later(250, show));
  $("gallery-more").addEventListener("click", () => attempt(more));
  $("detail-use").addEventListener("click", () => {
    fill(opened.settings, opened.model);
    $("detail").close();
    location.hash = "#generate";
  });
  $("detail-start").addEventListener("click", () => attempt(async () => {
    const { id } = opened;
    $("detail").close();
    location.hash = "#generate";
    await setImage(await (await fetch(`/v1/images/${id}.png`)).blob());
    $("start-from").scrollIntoView({ block: "nearest" });
  }));
  $("detail-format").addEventListener("change", showDownloads);
  $("detail-delete").addEventListener("click", () => attempt(async () => {
    if (!confirm("Delete this image? This cannot be undone.")) return;
    await remove(`/v1/images/${opened.id}`);
    document.querySelectorAll(`[data-image="${opened.id}"]`).forEach((node) => node.remove());
    $("detail").close();
  }));
  $("detail").addEventListener("click", (event) => { if (event.target === $("detail")) $("detail").close(); });
}

export async function show() {
  await attempt(async () => {
    oldest = null;
    const rows = await fetchPage();
    $("gallery-images").replaceChildren(...rows.map(tile));
    $("gallery-empty").hidden = rows.length > 0;
    $("gallery-empty").textContent = $("gallery-words").value.trim() ? "No prompt contains these words." : "No images yet.";
  });
}

async function more() {
  $("gallery-images").append(...(await fetchPage()).map(tile));
}

async function fetchPage() {
  const query = new URLSearchParams({ limit: PAGE_SIZE, search: $("gallery-words").value.trim() });
  if (oldest) query.set("before", oldest);
  const { images } = await get(`/v1/images?${query}`);
  oldest = images.at(-1)?.number;
  $("gallery-more").hidden = images.length < PAGE_SIZE;
  return images;
}

function tile(image) {
  return element("li", { "data-image": image.id }, frame(image, openDetail), element("p.hint", {}, image.settings.prompt),
    element("p.hint", {}, `${image.model} · seed ${image.settings.seed}`),
    ...(kindOf(image.settings) ? [element("p.hint.kind", {}, kindOf(image.settings))] : []));
}

export function openDetail(image) {
  opened = image;
  const { settings } = image;
  $("detail-image").src = `/v1/images/${image.id}.png`;
  $("detail-image").alt = settings.prompt;
  $("detail-prompt").textContent = settings.prompt || "(empty prompt)";
  const rows = {
    Model: image.model, "Negative prompt": settings.negative_prompt, Seed: settings.seed, Steps: settings.num_inference_steps,
    "Guidance scale": settings.guidance_scale, Sampler: samplerName(settings.scheduler),
    Size: settings.width && settings.height ? `${settings.width} × ${settings.height}` : " ",
    "Initial image": settings.init_image ? `strength ${settings.strength}${settings.mask_image ? ", within a mask" : ""}` : "",
    LoRAs: named(settings.loras), ControlNets: named(settings.controls), "IP-Adapters": named(settings.ip_adapters), Embeddings: named(settings.embeddings),
    Time: image.seconds ? `${image.seconds.toFixed(1)} s` : "", Notes: image.notes.join(" "),
  };
  $("detail-settings").replaceChildren(...Object.entries(rows).filter(([, value]) => value !== "" && value !== undefined)
    .map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", { "data-name": name }, String(value)))));
  $("detail-image").onload = ({ target }) => {
    $("detail-settings").querySelector("[data-name=Size]").textContent = `${target.naturalWidth} × ${target.naturalHeight}`;
  };
  showDownloads();
  if (!$("detail").open) $("detail").showModal();
}

const named = (models) => (models || []).map(nameOf).join(", ");

function showDownloads() {
  const { id, settings } = opened;
  const format = $("detail-format").value;
  $("detail-download").href = `/v1/images/${id}.${format}`;
  $("detail-download-bare").href = `/v1/images/${id}.${format}?metadata=false`;
  const suffix = format === "jpeg" ? "jpg" : format;
  for (const link of ["detail-download", "detail-download-bare"]) $(link).download = `${slug(settings.prompt)}_seed${settings.seed}.${suffix}`;
}

function slug(prompt) {
  return prompt.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 50) || "empty-prompt";
}
