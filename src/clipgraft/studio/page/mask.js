// A mask painted on an image: with the pointer, by keyboard, or from a file.

import { $ } from "/page/dom.js";

const KEY_STEP = 0.02;  // of the image's longer side
let painted = null;  // canvas of the mask: opaque where the image is repainted
let last = null;
let tool = "paint";
let cursor = [0.5, 0.5];  // of the keyboard, as shares of width and height
let onChange = () => {};

export function setUp(changed) {
  onChange = changed;
  const canvas = $("mask-canvas");
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    last = place(event);
    stroke(last, last);
    event.preventDefault();
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!last) return;
    const next = place(event);
    stroke(last, next);
    last = next;
  });
  for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => { if (last) onChange(); last = null; });
  canvas.addEventListener("keydown", onKey);
  canvas.addEventListener("focus", draw);
  canvas.addEventListener("blur", draw);
  for (const name of ["paint", "erase"]) {
    $(`mask-${name}`).addEventListener("click", () => {
      tool = name;
      for (const other of ["paint", "erase"]) $(`mask-${other}`).setAttribute("aria-pressed", String(other === name));
    });
  }
  $("mask-clear").addEventListener("click", () => { clear(); onChange(); });
  $("mask-invert").addEventListener("click", () => { invert(); onChange(); });
}

/** Begin an empty mask of an image's size. */
export function begin(width, height) {
  painted = Object.assign(document.createElement("canvas"), { width, height });
  Object.assign($("mask-canvas"), { width, height });
  draw();
}

/** Take a mask's image: white is repainted. */
export function load(image) {
  const context = painted.getContext("2d");
  context.drawImage(image, 0, 0, painted.width, painted.height);
  const pixels = context.getImageData(0, 0, painted.width, painted.height);
  for (let at = 0; at < pixels.data.length; at += 4) {
    const isWhite = pixels.data[at + 3] && pixels.data[at] + pixels.data[at + 1] + pixels.data[at + 2] >= 384;
    pixels.data.set([255, 255, 255, isWhite ? 255 : 0], at);
  }
  context.putImageData(pixels, 0, 0);
  draw();
}

/** Whether nothing is painted. */
export function isEmpty() {
  if (!painted) return true;
  const { data } = painted.getContext("2d").getImageData(0, 0, painted.width, painted.height);
  for (let at = 3; at < data.length; at += 4) if (data[at] > 127) return false;
  return true;
}

/** The mask as a PNG, white on black. */
export function file() {
  const flat = Object.assign(document.createElement("canvas"), { width: painted.width, height: painted.height });
  const context = flat.getContext("2d");
  context.drawImage(painted, 0, 0);
  const pixels = context.getImageData(0, 0, flat.width, flat.height);
  for (let at = 0; at < pixels.data.length; at += 4) {
    const value = pixels.data[at + 3] > 127 ? 255 : 0;  // no soft edges: the same pixels in every browser
    pixels.data.set([value, value, value, 255], at);
  }
  context.putImageData(pixels, 0, 0);
  return new Promise((resolve) => { flat.toBlob(resolve, "image/png"); });
}

function clear() {
  painted.getContext("2d").clearRect(0, 0, painted.width, painted.height);
  draw();
}

function invert() {
  const context = painted.getContext("2d");
  context.globalCompositeOperation = "source-out";  // fills what is empty, and empties the rest
  context.fillStyle = "#ffffff";
  context.fillRect(0, 0, painted.width, painted.height);
  context.globalCompositeOperation = "source-over";
  draw();
}

function place(event) {
  const box = $("mask-canvas").getBoundingClientRect();
  return [(event.clientX - box.left) / box.width * painted.width, (event.clientY - box.top) / box.height * painted.height];
}

function radius() {
  return Number($("mask-size").value) / 200 * Math.max(painted.width, painted.height);
}

function stroke([x, y], [toX, toY]) {
  const context = painted.getContext("2d");
  context.globalCompositeOperation = tool === "erase" ? "destination-out" : "source-over";
  context.lineCap = "round";
  context.lineWidth = 2 * radius();
  context.strokeStyle = "#ffffff";
  context.beginPath();
  context.moveTo(x, y);
  context.lineTo(toX + 0.01, toY);
  context.stroke();
  context.globalCompositeOperation = "source-over";
  draw();
}

function onKey(event) {
  const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const at = () => [cursor[0] * painted.width, cursor[1] * painted.height];
  if (event.key === " " || event.key === "Enter") {
    stroke(at(), at());
    onChange();
  } else if (moves[event.key]) {
    const before = at();
    const longer = Math.max(painted.width, painted.height);
    cursor = cursor.map((value, axis) => Math.min(1, Math.max(0, value + moves[event.key][axis] * KEY_STEP * longer / [painted.width, painted.height][axis])));
    if (event.shiftKey) { stroke(before, at()); onChange(); }
    else draw();
  } else return;
  event.preventDefault();
}

/** Show the mask over the image, and the keyboard's brush. */
function draw() {
  const canvas = $("mask-canvas");
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, canvas.width, canvas.height);
  if (!painted) return;
  context.globalCompositeOperation = "source-over";
  context.drawImage(painted, 0, 0);
  context.globalCompositeOperation = "source-in";
  context.fillStyle = "#e5484d";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.globalCompositeOperation = "source-over";
  if (canvas.matches(":focus-visible")) {
    for (const [color, width] of [["#000000", 3], ["#ffffff", 1]]) {
      context.strokeStyle = color;
      context.lineWidth = width * canvas.width / Math.max(1, canvas.clientWidth);
      context.beginPath();
      context.arc(cursor[0] * canvas.width, cursor[1] * canvas.height, radius(), 0, 7);
      context.stroke();
    }
  }
}
