// Images and models of a request: an initial image with its mask, LoRAs, ControlNets, IP-Adapters, embeddings.

import { ApiError, announce, attempt, get, upload } from "/page/api.js";
import { $, element, later, options } from "/page/dom.js";
import * as mask from "/page/mask.js";

const NUMBERS = {
  loras: [["strength", "Strength", 1, -10, 10], ["text_strength", "Text strength", "", -10, 10]],
  controls: [["scale", "Scale", 1, 0, 10], ["start", "From", 0, 0, 1], ["end", "To", 1, 0, 1]],
  ip_adapters: [["scale", "Scale", 1, 0, 10]],
  embeddings: [],
};
const TITLES = { loras: "LoRA", controls: "ControlNet", ip_adapters: "IP-Adapter", embeddings: "Embedding" };
const HAS_IMAGE = ["controls", "ip_adapters"];
let adapters = {};
let image = null;  // the initial image's upload
let maskId = "";
let waiting = Promise.resolve();  // for uploads
let onChange = () => {};
let widthOf = () => null;  // of a model's text states

export async function setUp(changed, width) {
  onChange = changed;
  widthOf = width;
  mask.setUp(() => { maskSoon(); });
  accept($("init-drop"), $("init-file"), setImage);
  $("init-remove").addEventListener("click", () => { setUpload(null); $("init-file").focus(); });
  $("mask-file").addEventListener("change", () => {
    const file = $("mask-file").files[0];
    $("mask-file").value = "";
    if (file) waiting = attempt(() => setMask(file));
  });
  $("strength-slider").addEventListener("input", () => { $("strength").value = $("strength-slider").value; });
  $("strength").addEventListener("input", () => { $("strength-slider").value = $("strength").value; });
  adapters = await get("/v1/adapters");
  for (const kind of Object.keys(NUMBERS)) {
    $(`add-${kind}`).hidden = !adapters[kind].length;
    $(`add-${kind}`).addEventListener("click", () => {
      const added = row(kind);
      $("added").append(added);
      added.querySelector("select").focus();
      onChange();
    });
  }
  $("no-adapters").hidden = Object.values(adapters).some((found) => found.length);
}

/** Wait for uploads; an error if a model has no image. */
export async function ready() {
  await flush();
  const open = [...$("added").children].find((node) => HAS_IMAGE.includes(node.dataset.kind) && !node.dataset.image);
  if (open) throw new ApiError(`Choose an image for the ${TITLES[open.dataset.kind]}.`);
}

/** Fields of a request. */
export function values() {
  const found = {};
  if (image) Object.assign(found, { init_image: image.id, strength: Number($("strength").value) }, maskId ? { mask_image: maskId } : {});
  for (const node of $("added").children) {
    const { kind } = node.dataset;
    if (HAS_IMAGE.includes(kind) && !node.dataset.image) continue;
    (found[kind] ||= []).push(read(node));
  }
  return found;
}

/** Show a request's images and models. */
export function fill(settings) {
  isPainted = false;
  waiting = show(settings);
  return waiting;
}

async function show(settings) {
  $("added").replaceChildren();
  for (const kind of Object.keys(NUMBERS)) for (const one of settings[kind] || []) $("added").append(row(kind, typeof one === "string" ? { name: one } : one));
  if (settings.strength) $("strength").value = $("strength-slider").value = settings.strength;
  setUpload(null);
  if (settings.init_image) {
    const shown = await picture(`/v1/uploads/${settings.init_image}.png`);
    setUpload({ id: settings.init_image, width: shown.naturalWidth, height: shown.naturalHeight });
    if (settings.mask_image) {
      mask.load(await picture(`/v1/uploads/${settings.mask_image}.png`));
      maskId = settings.mask_image;
    }
  }
  $("start-from").open = Boolean(image);
  $("models-part").open = $("added").children.length > 0;
  onChange();
}

/** Start from an image's file. */
export async function setImage(file) {
  setUpload(await upload("/v1/uploads", file));
  $("start-from").open = true;
  announce("Initial image loaded.");
}

/** How a request's image is made, in words: empty if from text alone. */
export function kindOf(settings) {
  const counted = Object.entries(TITLES).filter(([kind]) => settings[kind]?.length).map(([kind, title]) => `${title} ${settings[kind].map(nameOf).join(", ")}`);
  const start = settings.mask_image ? "within a mask" : settings.init_image ? "from an image" : "";
  return [start, ...counted].filter(Boolean).join(" · ");
}

/** A model of a request as a text: its name and strength. */
export const nameOf = (one) => (typeof one === "string" ? one : `${one.name ?? one.model} ${one.strength ?? one.scale}`);

function setUpload(found) {
  image = found;
  maskId = "";
  $("init-shown").hidden = !image;
  $("init-drop").hidden = Boolean(image);
  if (image) {
    $("init-image").src = `/v1/uploads/${image.id}.png`;
    mask.begin(image.width, image.height);
  }
  onChange();
}

async function setMask(file) {
  const found = await upload("/v1/uploads", file);
  if (found.width !== image.width || found.height !== image.height) {
    throw new ApiError(`The mask has ${found.width} × ${found.height} pixels and the image ${image.width} × ${image.height}; they must be of one size.`);
  }
  mask.load(await picture(`/v1/uploads/${found.id}.png`));
  maskId = found.id;
  announce("Mask loaded.");
  onChange();
}

let isPainted = false;
const maskSoon = () => { isPainted = true; flushSoon(); };
const flushSoon = later(400, () => attempt(flush));

/** Send what was painted since the last time. */
async function flush() {
  await waiting;
  if (!isPainted || !image) return;
  isPainted = false;
  waiting = (async () => {
    maskId = mask.isEmpty() ? "" : (await upload("/v1/uploads", await mask.file())).id;
    onChange();
  })();
  await waiting;
}

function picture(src) {
  return new Promise((resolve, reject) => {
    const found = new Image();
    found.onload = () => resolve(found);
    found.onerror = () => reject(new ApiError("An image of these settings is no longer in the studio."));
    found.src = src;
  });
}

/** Take files that are chosen or dropped. */
function accept(area, input, take) {
  input.addEventListener("change", () => {
    const file = input.files[0];
    input.value = "";
    if (file) attempt(() => take(file));
  });
  area.addEventListener("dragover", (event) => { event.preventDefault(); area.classList.add("over"); });
  area.addEventListener("dragleave", () => area.classList.remove("over"));
  area.addEventListener("drop", (event) => {
    event.preventDefault();
    event.stopPropagation();  // elsewhere a dropped image's settings are loaded
    area.classList.remove("over");
    const file = event.dataTransfer.files[0];
    if (file) attempt(() => take(file));
  });
}

/** Controls of a model: which one, how strongly, its image, and a button that removes it. */
function row(kind, given = {}) {
  const title = TITLES[kind];
  const node = element("fieldset.part", { "data-kind": kind }, element("legend", {}, title));
  const select = element("select", { "aria-label": `${title}: name` });
  const chosen = given.name ?? given.model;
  options(select, adapters[kind].map((one) => [one.name, described(one)]), chosen ?? adapters[kind].find(fits)?.name);
  const remove = element("button.close", { type: "button", "aria-label": `Remove ${title}` }, "×");
  remove.addEventListener("click", () => { node.remove(); $(`add-${kind}`).focus(); onChange(); });
  node.append(element("div.with-button", {}, select, remove));
  if (HAS_IMAGE.includes(kind)) node.append(rowImage(node, title, given.image));
  const numbers = NUMBERS[kind].map(([name, text, usual, min, max]) => {
    const input = element("input", { type: "number", step: "any", min, max, value: given[name] ?? usual, "data-name": name, placeholder: usual === "" ? "same" : "" });
    input.required = usual !== "";
    return element("label", {}, text, input);
  });
  if (numbers.length) node.append(element("div.numbers", {}, ...numbers));
  return node;
}

/** Whether a model takes the text states of the chosen base, as far as known; an embedding depends on the text encoder. */
function fits({ width, words }) {
  const own = widthOf($("model").value);
  return Boolean(words) || !width || !own || width === own;
}

function described(one) {
  const words = one.words && one.words.join() !== one.name.split("/").at(-1) ? ` (${one.words.join(", ")})` : "";
  return one.name + words + (fits(one) ? "" : " (for another base)");
}

function rowImage(node, title, uploadId) {
  const input = element("input.unseen", { type: "file", accept: "image/png,image/jpeg,image/webp,image/avif,image/heic", "aria-label": `${title}: image` });
  const shown = element("img", { alt: "", hidden: true });
  const text = element("span", {}, "Choose or drop its image");
  const area = element("label.drop.small", {}, input, shown, text);
  const choose = (id) => {
    node.dataset.image = id;
    shown.src = `/v1/uploads/${id}.png`;
    shown.hidden = false;
    text.textContent = "Another image";
    onChange();
  };
  accept(area, input, async (file) => choose((await upload("/v1/uploads", file)).id));
  if (uploadId) choose(uploadId);
  return area;
}

function read(node) {
  const { kind } = node.dataset;
  const name = node.querySelector("select").value;
  if (kind === "embeddings") return name;
  const found = kind === "loras" ? { name } : { model: name, image: node.dataset.image };
  for (const input of node.querySelectorAll("[data-name]")) if (input.value !== "") found[input.dataset.name] = Number(input.value);
  return found;
}
