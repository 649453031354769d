// Two pictures of the same seed, one laid over the other, and a line between them to move.

import { element, options } from "/page/dom.js";

export function showSlide(pictures) {
  const under = element("img");
  const over = element("img.over");
  const tags = [element("span.tag.left"), element("span.tag.right")];
  const handle = element("input", { type: "range", min: 0, max: 100, value: 50, "aria-label": "Share of the left picture that is shown" });
  const slide = element("div.slide", {}, under, over, element("div.line"), ...tags, handle);
  handle.addEventListener("input", () => slide.style.setProperty("--cut", `${handle.value}%`));
  const choices = ["Left", "Right"].map((name, side) => {
    const select = element("select", { id: `slide-${side}` });
    options(select, pictures.map((one, index) => [String(index), one.model]), String(side === 0 ? Math.max(0, pictures.length - 2) : pictures.length - 1));
    select.addEventListener("change", update);
    return [select, element("div", {}, element("label", { htmlFor: select.id }, name), select)];
  });
  function update() {
    [under, over].forEach((image, side) => {
      const picture = pictures[Number(choices[side][0].value)];
      image.src = `/v1/pictures/${picture.id}.png`;
      image.alt = `${picture.model}: ${picture.settings.prompt}`;
      tags[side].textContent = picture.model;
    });
  }
  update();
  return element("div", {}, slide, element("div.sides-of-slide", {}, ...choices.map(([, field]) => field)));
}
