// Runs: loss during training, reports afterwards.

import { announce, attempt, get } from "/page/api.js";
import { $, element, svg } from "/page/dom.js";
import * as train from "/page/train.js";

const MAX_WIDTH = 832, LEFT = 48, RIGHT = 16, TOP = 28, BOTTOM = 50;
const MAX_DOTS = 30;  // of epochs; more would hide the line
const MILLISECONDS_BETWEEN_LOOKS = 2000;
let chosen = "";
let timer = null;
let report = null;
const lastState = {};
let shownFor = "";
let shownName = "";

export function setUp() {
  train.setUp(choose);
}

async function choose(name) {
  chosen = name;
  await refresh();
  document.querySelector(`[data-run="${CSS.escape(name)}"]`)?.focus();
}

export async function show() {
  shownFor = "";
  clearInterval(timer);
  timer = setInterval(() => refresh().catch(() => {}), MILLISECONDS_BETWEEN_LOOKS);  // before the await: hide() may be called meanwhile
  await attempt(refresh);
}

export function hide() {
  clearInterval(timer);
}

async function refresh() {
  const [{ runs }, trainings] = await Promise.all([get("/v1/runs"), get("/v1/trainings")]);
  train.offer(trainings);
  for (const { name, state } of trainings.trainings.toReversed()) {
    const run = runs.find((one) => one.name === name);
    if (!run) runs.unshift({ name, state });
    else if (state !== "done") run.state = state;
  }
  $("runs-empty").hidden = runs.length > 0;
  if (!runs.length) return;
  if (!runs.some((run) => run.name === chosen)) chosen = runs[0].name;
  const focused = document.activeElement?.dataset?.run;
  $("run-list").replaceChildren(...runs.map((run) => {
    const button = element("button", { type: "button", "aria-pressed": String(run.name === chosen), "data-run": run.name },
      run.name, element("small", {}, run.state));
    button.addEventListener("click", () => attempt(() => choose(run.name)));
    return element("li", {}, button);
  }));
  if (focused) document.querySelector(`[data-run="${CSS.escape(focused)}"]`)?.focus();
  const name = chosen;
  const isTraining = trainings.trainings.some((one) => one.name === name);
  const [run, training] = await Promise.all([
    get(`/v1/runs/${encodeURIComponent(name)}`).catch(() => ({ name, state: "", steps: [], losses: [], epochs: [], problems: [] })),  // it has no folder yet
    isTraining ? get(`/v1/trainings/${name}`) : null,
  ]);
  if (name === chosen) showRun(run, training);
}

function showRun(run, training) {
  const last = run.epochs.at(-1);
  const facts = [run.state, run.steps.length ? `step ${run.steps.at(-1)}` : "", last ? `mean loss of epoch ${last[0]}: ${last[2].toFixed(4)}` : ""];
  const look = JSON.stringify([run, training, $("run").clientWidth]);
  if (look === shownFor) return;
  const focused = document.activeElement?.dataset?.act;
  const isOutputOpen = training && shownName === training.name ? $("run").querySelector(".job details")?.open : undefined;
  shownName = run.name;
  if (training && training.state !== lastState[training.name]) {
    if (lastState[training.name]) announce(`Training ${training.name}: ${training.state}`);
    lastState[training.name] = training.state;
  }
  shownFor = look;
  const parts = [element("div", {}, element("h2", {}, run.name), element("p.hint", {}, facts.filter(Boolean).join(" · ")))];
  if (training) parts.push(train.panel(training, refresh, isOutputOpen));
  parts.push(run.steps.length ? chart(run) : element("p.hint", {}, ["waiting", "running"].includes(training?.state) ? "No training step yet." : "No training step was logged."));
  for (const problem of run.problems) parts.push(element("p.hint.warn", {}, problem));
  if (run.has_report) parts.push(reportOf(run));
  $("run").replaceChildren(...parts);
  if (focused) ($("run").querySelector("[data-act]") || $("run").querySelector("summary"))?.focus();
}

/** Reuse the frame, so that refreshing the loss does not reload the report. */
function reportOf(run) {
  if (report?.dataset.run !== `${run.name} ${run.changed}`) {
    const address = `/v1/runs/${encodeURIComponent(run.name)}/report`;
    report = element("div", { "data-run": `${run.name} ${run.changed}` },
      element("iframe", { src: address, title: `Report of ${run.name}`, sandbox: "allow-scripts", loading: "lazy" }),
      element("p.hint", {}, element("a", { href: address, target: "_blank", rel: "noopener" }, "Open the report in a new tab")));
  }
  return report;
}

function chart(run) {
  // In screen pixels, so that its text is as large as all other text.
  const width = Math.min(MAX_WIDTH, $("run").clientWidth || MAX_WIDTH);
  const height = Math.round(width * 0.3 + 110);
  const values = [...run.losses.filter((loss) => loss !== null), ...run.epochs.map((epoch) => epoch[2])];
  const top = Math.max(...values) * 1.05 || 1;
  const end = Math.max(run.steps.at(-1), 1);
  const x = (step) => LEFT + ((width - LEFT - RIGHT) * step) / end;
  const y = (loss) => height - BOTTOM - ((height - TOP - BOTTOM) * loss) / top;
  const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, class: "chart", role: "img" });
  root.append(svg("title", {}, `Loss of ${run.name} over ${end} steps; last batch ${run.losses.at(-1)}`));
  for (const tick of ticks(top)) {
    root.append(svg("path", { class: "axis-line", d: `M${LEFT} ${y(tick)}H${width - RIGHT}` }));
    root.append(svg("text", { x: LEFT - 8, y: y(tick) + 4, "text-anchor": "end" }, String(tick)));
  }
  for (const tick of ticks(end)) root.append(svg("text", { x: x(tick), y: height - BOTTOM + 20, "text-anchor": "middle" }, String(tick)));
  root.append(svg("text", { x: (LEFT + width - RIGHT) / 2, y: height - 6, "text-anchor": "middle" }, "optimizer step"));
  root.append(svg("text", { x: LEFT, y: 16, class: "batch-text" }, "batch loss"), svg("text", { x: LEFT + 84, y: 16, class: "mean-text" }, "epoch mean"));
  let pen = "M";
  const path = run.steps.map((step, index) => {
    if (run.losses[index] === null) { pen = "M"; return ""; }
    const command = `${pen}${x(step).toFixed(1)} ${y(run.losses[index]).toFixed(1)}`;
    pen = "L";
    return command;
  });
  root.append(svg("path", { class: "batch", d: path.join("") }));
  if (run.epochs.length > 1) root.append(svg("path", { class: "mean", d: run.epochs.map(([, step, mean], index) => `${index ? "L" : "M"}${x(step).toFixed(1)} ${y(mean).toFixed(1)}`).join("") }));
  if (run.epochs.length <= MAX_DOTS) for (const [, step, mean] of run.epochs) root.append(svg("circle", { class: "dot", cx: x(step), cy: y(mean), r: 4 }));
  return root;
}

/** Round numbers from 0 to a maximum. */
function ticks(top) {
  const rough = top / 5;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
  return Array.from({ length: Math.floor(top / step) + 1 }, (_, index) => Number((index * step).toPrecision(6)));
}
