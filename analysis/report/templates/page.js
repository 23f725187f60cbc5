"use strict";

// Tables: a click on a header sorts by that column, a second one the other way round. What is no number comes last.
const NUMBER = /^[-−+]?\d[\d.]*(?:e[-+]?\d+)?(?=$|[\s×–†‡%])/i;

function sortKey(cell) {
  const text = (cell.dataset.text ?? cell.textContent).trim();
  const number = NUMBER.exec(text);
  return { text, number: number ? parseFloat(number[0].replace("−", "-")) : NaN };
}

function compare(a, b, sign) {
  const [isA, isB] = [!Number.isNaN(a.number), !Number.isNaN(b.number)];
  if (isA && isB) return sign * (a.number - b.number);
  if (isA !== isB) return isA ? -1 : 1;
  return sign * a.text.localeCompare(b.text, "en", { numeric: true });
}

function sortBy(header) {
  const heads = [...header.parentElement.children];
  const column = heads.indexOf(header);
  const sign = header.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  for (const head of heads) head.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
  const body = header.closest("table").tBodies[0];
  const rows = [...body.rows].map((row) => [sortKey(row.cells[column]), row]);
  rows.sort(([a], [b]) => compare(a, b, sign));
  body.append(...rows.map(([, row]) => row));
}

for (const header of document.querySelectorAll("table.sortable thead th")) {
  const button = document.createElement("button");
  button.type = "button";
  button.append(...header.childNodes);
  header.append(button);
  button.addEventListener("click", () => sortBy(header));
}

// Figures: drawn when they come near the screen, in the colours of the theme, and again when that changes.
const THEME = JSON.parse(document.getElementById("theme").textContent);

function themed(value, style) {
  if (typeof value === "string") return THEME[value] ? style.getPropertyValue(THEME[value]).trim() : value;
  if (Array.isArray(value)) return value.map((each) => themed(each, style));
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([key, each]) => [key, themed(each, style)]));
}

function draw(node) {
  const figure = JSON.parse(node.querySelector("script").textContent);
  const { data, layout } = themed(figure, getComputedStyle(document.documentElement));
  if (matchMedia("(pointer: coarse)").matches) layout.dragmode = false; // a finger scrolls the page
  Plotly.react(node.querySelector(".plot"), data, layout, { responsive: true, displayModeBar: false });
}

if (typeof Plotly !== "undefined") {
  document.documentElement.classList.add("live");
  if (!document.createElement("canvas").getContext("webgl")) {
    document.querySelectorAll(".figure.webgl").forEach((node) => node.replaceChildren("This figure needs WebGL."));
  }
  const drawn = new Set();
  const watch = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      watch.unobserve(target);
      drawn.add(target);
      draw(target);
    }
  }, { rootMargin: "600px" });
  for (const node of document.querySelectorAll(".figure.interactive:has(.plot)")) watch.observe(node);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawn.forEach(draw));
}
