// Not needed to read the page: lets a reader slide between before and after where both stand side by side.
for (const cells of document.querySelectorAll(".rows:not(.small) .cells")) {
  const [before, after] = ["before", "after"].map((name) => cells.querySelector(`[data-variant=${name}] img`));
  if (!before || !after || before.width !== after.width) continue;
  const button = Object.assign(document.createElement("button"), { type: "button", textContent: "Slide between before and after" });
  cells.after(button);
  button.addEventListener("click", () => {
    const slider = document.createElement("div");
    slider.className = "slider";
    const range = Object.assign(document.createElement("input"), { type: "range", min: 0, max: 100, value: 50 });
    range.setAttribute("aria-label", "Share of the image that shows before");
    const top = before.cloneNode();
    range.addEventListener("input", () => top.style.setProperty("clip-path", `inset(0 ${100 - range.value}% 0 0)`));
    const frame = document.createElement("div");
    frame.append(after.cloneNode(), top);
    const note = Object.assign(document.createElement("p"), { className: "note", textContent: "Left of the handle: before. Right: after." });
    slider.append(frame, range, note);
    top.style.setProperty("clip-path", "inset(0 50% 0 0)");
    button.replaceWith(slider);
    range.focus();
  });
}
