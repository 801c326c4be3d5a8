"use strict";
(() => {
  // Theme: that of the system, until the button says otherwise.
  const root = document.documentElement, button = document.getElementById("theme");
  const store = (value) => { try { return value ? localStorage.setItem("theme", value) : localStorage.getItem("theme"); } catch { return null; } };
  const theme = () => root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  const show = () => { button.textContent = theme() === "dark" ? "Light" : "Dark"; };
  const kept = store();
  if (kept === "dark" || kept === "light") root.dataset.theme = kept;
  button.addEventListener("click", () => {
    root.dataset.theme = theme() === "dark" ? "light" : "dark";
    store(root.dataset.theme);
    show();
  });
  show();

  // Tables: numbers by size, words by the alphabet, what is missing last.
  const compare = (a, b) => {
    if (a === "" || b === "") return 0;
    const x = Number(a), y = Number(b);
    return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b) : x - y;
  };
  const sort = (head) => {
    const table = head.closest("table"), body = table.tBodies[0], column = head.cellIndex;
    const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    const value = (row) => row.cells[column].dataset.value;
    const rows = [...body.rows].sort((a, b) => (value(a) === "") - (value(b) === "") || sign * compare(value(a), value(b)));
    for (const other of head.parentNode.cells) other.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", sign === 1 ? "ascending" : "descending");
    body.append(...rows);
  };
  for (const press of document.querySelectorAll(".sortable th button")) press.addEventListener("click", () => sort(press.closest("th")));

  // Values of figures: that nearest to the pointer, or by the arrow keys one after another.
  const tip = document.getElementById("tip");
  let on = null;
  const hide = () => { on?.classList.remove("on"); on = null; tip.hidden = true; };
  const centre = (mark) => { const box = mark.getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height / 2]; };
  const tell = (mark) => {
    if (mark === on) return;
    hide();
    on = mark;
    on.classList.add("on");
    tip.textContent = on.dataset.tip;
    tip.hidden = false;
    const [x, y] = centre(on), gap = 14, wide = tip.offsetWidth, high = tip.offsetHeight;
    tip.style.left = `${Math.max(4, Math.min(root.clientWidth - wide - 4, x - wide / 2))}px`;
    tip.style.top = `${y - high - gap < 4 ? y + gap : y - high - gap}px`;
  };
  for (const svg of document.querySelectorAll("figure svg")) {
    const marks = [...svg.querySelectorAll(".value")];
    for (const mark of marks) mark.querySelector("title").remove();  // or it would show twice
    const point = (event) => {
      let best = null, least = 32;
      for (const mark of marks) {
        const [x, y] = centre(mark), far = Math.hypot(x - event.clientX, y - event.clientY);
        if (far < least) [best, least] = [mark, far];
      }
      best ? tell(best) : hide();
    };
    svg.addEventListener("pointermove", point);
    svg.addEventListener("pointerdown", point);
    svg.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") hide(); });
    svg.tabIndex = 0;
    svg.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      tell(marks[(marks.indexOf(on) + step + marks.length) % marks.length]);
    });
    svg.addEventListener("blur", hide);
  }
  addEventListener("scroll", hide, { passive: true });
  addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
  addEventListener("pointerdown", (event) => { if (!event.target.closest("figure svg")) hide(); });
})();
