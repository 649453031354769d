// Two images of the same seed under a slider.

import { element, options } from "/page/dom.js";

export function showSlide(images) {
  const under = element("img");
  const over = element("img.over");
  const tags = [element("span.tag.left"), element("span.tag.right")];
  const handle = element("input", { type: "range", min: 0, max: 100, value: 50, "aria-label": "Share of the left image" });
  const slide = element("div.slide", {}, under, over, element("div.line"), ...tags, handle);
  handle.addEventListener("input", () => slide.style.setProperty("--cut", `${handle.value}%`));
  const choices = ["Left", "Right"].map((name, side) => {
    const select = element("select", { id: `slide-${side}` });
    options(select, images.map((one, index) => [String(index), one.model]), String(side === 0 ? Math.max(0, images.length - 2) : images.length - 1));
    select.addEventListener("change", update);
    return [select, element("div", {}, element("label", { htmlFor: select.id }, name), select)];
  });
  function update() {
    [under, over].forEach((node, side) => {
      const image = images[Number(choices[side][0].value)];
      node.src = `/v1/images/${image.id}.png`;
      node.alt = `${image.model}: ${image.settings.prompt}`;
      tags[side].textContent = image.model;
    });
  }
  update();
  return element("div", {}, slide, element("div.sides-of-slide", {}, ...choices.map(([, field]) => field)));
}
