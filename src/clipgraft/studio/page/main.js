// Switch views by the part of the address behind #.

import { attempt } from "/page/api.js";
import { $ } from "/page/dom.js";
import * as jobs from "/page/jobs.js";
import * as gallery from "/page/gallery.js";
import * as search from "/page/search.js";
import * as settings from "/page/settings.js";
import * as training from "/page/training.js";

const VIEWS = ["generate", "compare", "grid", "gallery", "search", "training"];

function route() {
  const wanted = location.hash.slice(1);
  if (wanted === "content") return;
  const view = VIEWS.includes(wanted) ? wanted : "generate";
  for (const section of document.querySelectorAll("[data-views]")) section.hidden = !section.dataset.views.split(" ").includes(view);
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${view}`) {
      link.setAttribute("aria-current", "page");
      link.scrollIntoView({ block: "nearest", inline: "nearest" });
    } else link.removeAttribute("aria-current");
  }
  document.title = `${view[0].toUpperCase()}${view.slice(1)} · clipgraft studio`;
  training.hide();
  if (view === "gallery") gallery.show();
  else if (view === "search") search.show();
  else if (view === "training") training.show();
  else {
    settings.setMode(view);
    $("studio").querySelector("h1").textContent = document.title;
  }
}

addEventListener("hashchange", route);
jobs.setUp();
gallery.setUp();
search.setUp();
training.setUp();
route();
await attempt(settings.setUp);
route();
