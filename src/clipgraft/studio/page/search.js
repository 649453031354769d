// Caption search: a run's test images nearest to a caption, by CLIP before and after fine-tuning.

import { attempt, get, post } from "/page/api.js";
import { $, element, options } from "/page/dom.js";

const SIDES = [["before", "Before fine-tuning"], ["after", "After fine-tuning"]];

export function setUp() {
  $("caption-search").addEventListener("submit", (event) => { event.preventDefault(); search(); });
}

export async function show() {
  await attempt(async () => {
    const { searchable } = await get("/v1/runs");
    options($("search-run"), searchable.map((name) => [name, name]), $("search-run").value || searchable[0]);
    $("caption-search").hidden = !searchable.length;
    $("search-state").textContent = searchable.length ? "" : "No run with a fine-tuned CLIP yet. clipgraft demo --out runs/demo makes one.";
  });
}

async function search() {
  const run = $("search-run").value;
  $("search-state").textContent = "Searching";
  const timer = setInterval(() => showProgress(run), 500);
  const found = await attempt(() => post("/v1/search", { run, caption: $("caption").value, limit: 12 }));
  clearInterval(timer);
  $("search-state").textContent = "";
  if (found) $("search-results").replaceChildren(...SIDES.map(([side, title]) => column(run, found[side], title)));
}

async function showProgress(run) {
  const { done, total } = await get(`/v1/search/${encodeURIComponent(run)}`);
  if (total) $("search-state").textContent = `Reading images for the first search: ${done} of ${total}`;
}

function column(run, rows, title) {
  const items = rows.map(({ image, score, captions }, rank) => element("li", {},
    element("div.frame", {}, element("img", {
      src: `/v1/search/${encodeURIComponent(run)}/${image}`, alt: captions[0], title: captions.join("\n"), loading: "lazy",
    })),
    element("p.hint", {}, element("span", {}, `${rank + 1}`), element("span", {}, `cosine ${score.toFixed(3)}`))));
  return element("div", {}, element("h2", {}, title), element("ol", {}, ...items));
}
