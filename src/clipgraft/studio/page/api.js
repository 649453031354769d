// Requests: JSON in and out, errors as sentences, exact 64-bit seeds.

const notice = document.getElementById("notice");
const announcer = document.getElementById("announcer");

export class ApiError extends Error {}

export async function get(path) {
  return read(await send(path, {}));
}

export async function post(path, body) {
  const headers = { "Content-Type": "application/json" };
  return read(await send(path, { method: "POST", headers, body: toJson(body) }));
}

export async function upload(path, file) {
  return read(await send(path, { method: "POST", headers: { "Content-Type": file.type || "image/png" }, body: file }));
}

export async function remove(path) {
  return read(await send(path, { method: "DELETE" }));
}

/** Show a notice, or hide it. */
export function tell(message) {
  notice.textContent = message || "";
  notice.hidden = !message;
}

/** Announce a text to screen readers. */
export function announce(text) {
  if (announcer.textContent !== text) announcer.textContent = text;
}

/** Run an action and show its error. */
export async function attempt(action) {
  try {
    tell("");
    return await action();
  } catch (error) {
    if (!(error instanceof ApiError)) console.error(error);
    tell(error.message);
    return undefined;
  }
}

export function parse(text) {
  // A seed has up to 64 bits, a JavaScript number 53.
  return JSON.parse(text, (key, value, context) =>
    typeof value === "number" && !Number.isSafeInteger(value) && Number.isInteger(value) && context?.source ? context.source : value);
}

function toJson(body) {
  const raw = (value) => (typeof value === "bigint" ? (JSON.rawJSON ? JSON.rawJSON(String(value)) : Number(value)) : value);
  return JSON.stringify(body, (_key, value) => raw(value));
}

async function send(path, options) {
  try {
    return await fetch(path, options);
  } catch {
    throw new ApiError("The studio does not answer. Is it still running?");
  }
}

async function read(response) {
  const text = await response.text();
  let body = null;
  try {
    body = text ? parse(text) : null;
  } catch {
    // Said below.
  }
  if (response.ok && body !== null) return body;
  const wait = response.headers.get("Retry-After");
  const message = body?.error?.message || `The studio answered ${response.status}.`;
  throw new ApiError(sentence(message) + (wait && response.status === 429 ? ` Try again in ${wait} s.` : ""));
}

const FIELDS = { num_inference_steps: "Steps", num_images_per_prompt: "Images" };

/** A message of the server as a sentence; a field is named as on the page. */
function sentence(text) {
  const trimmed = text.trim().replace(/^[a-z]+(_[a-z]+)+(?=:)/, (name) => FIELDS[name] || name.replaceAll("_", " "));
  return trimmed[0].toUpperCase() + trimmed.slice(1) + (/[.?!]$/.test(trimmed) ? "" : ".");
}
