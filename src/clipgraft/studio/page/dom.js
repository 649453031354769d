// Making elements: text is always set as text, so a caption that is a script stays text.

export const $ = (id) => document.getElementById(id);

/** element("p.hint", {title: "..."}, "text", child, ...) */
export function element(description, properties = {}, ...children) {
  const [tag, ...classes] = description.split(".");
  const node = document.createElement(tag);
  if (classes.length) node.className = classes.join(" ");
  for (const [name, value] of Object.entries(properties)) {
    if (name in node) node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

export function svg(tag, attributes = {}, text = "") {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.textContent = text;
  return node;
}

export function options(select, values, chosen) {
  select.replaceChildren(...values.map(([value, text]) => new Option(text, value, false, value === chosen)));
}

export function later(milliseconds, action) {
  let timer;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => action(...values), milliseconds);
  };
}

export function counted(number) {
  return number === 1 ? "1 image" : `${number} images`;
}

export const WHY = {
  failed_nan: "Failed: its values are not numbers (NaN).",
  failed_black: "Failed: it is all black.",
  blocked: "Blocked by the base’s safety checker.",
  cancelled: "Cancelled.",
  interrupted: "Interrupted: the studio was stopped.",
  failed: "Failed.",
  queued: "Waiting.",
  running: "Starting.",
};

/** An image, or the reason it failed. */
export function frame(image, onOpen) {
  const { settings, state } = image;
  const alt = `${settings.prompt}, seed ${settings.seed}, ${image.model}`;
  if (state === "ok") {
    const button = element("button.frame", { type: "button", "aria-label": `Show settings: ${alt}` },
      element("img", { src: `/v1/images/${image.id}.png`, alt, loading: "lazy" }));
    button.addEventListener("click", () => onOpen(image));
    return button;
  }
  if (state === "running" && image.preview_step) {
    const src = `/v1/images/${image.id}/preview?step=${image.preview_step}`;
    return element("div.frame", {}, element("img", { src, alt: `Preview: ${alt}` }));
  }
  return element("div.frame", {}, element("span.why", {}, WHY[state] || state));
}
