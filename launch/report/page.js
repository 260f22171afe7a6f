// Draws the figures, and draws them again when the theme or the axis changes. Everything is in this file: no network.
"use strict";
const figures = JSON.parse(document.getElementById("figures").textContent);
const axes = JSON.parse(document.getElementById("axes").textContent);
const systemTheme = matchMedia("(prefers-color-scheme: dark)");
const views = new Map();

function chosen(name) {
  const input = document.querySelector(`input[name="${name}"]:checked`);
  return input ? input.value : null;
}

function applyTheme() {
  const theme = chosen("theme");
  document.documentElement.dataset.theme = theme === "system" ? (systemTheme.matches ? "dark" : "light") : theme;
}

function config() {
  const style = getComputedStyle(document.documentElement);
  const color = (name) => style.getPropertyValue(name).trim();
  const [text, quiet, line] = ["--text", "--quiet", "--line"].map(color);
  const series = color("--series").split(/\s+/);
  return {
    background: null,
    font: "system-ui, sans-serif",
    view: { stroke: null },
    axis: { labelColor: quiet, titleColor: quiet, gridColor: line, domainColor: line, tickColor: line,
            titleFontWeight: "normal", labelFontSize: 12, titleFontSize: 12 },
    legend: { labelColor: text, titleColor: quiet, titleFontWeight: "normal", orient: "top", labelLimit: 260,
              labelFontSize: 12, titleFontSize: 12, symbolStrokeWidth: 2, columns: 3,
              layout: { top: { anchor: "start", direction: "vertical" } } },
    range: { category: series },
    mark: { color: series[0] },
    line: { strokeWidth: 2, strokeJoin: "round" },
    text: { fontSize: 12, fill: text },
    style: { "on-mark": { fill: color("--on-mark"), fontSize: 12 } },
  };
}

function specification(figure) {
  const spec = structuredClone(figure.spec);
  if (spec.$schema.includes("vega-lite")) {
    spec.width = "container";
    spec.height = 260;
    spec.autosize = { type: "fit", contains: "padding" };
    const axis = axes[chosen("axis")];
    if (figure.has_axes && axis) Object.assign(spec.encoding.x, axis);
  }
  return spec;
}

async function draw(figure) {
  const element = document.getElementById(`chart_${figure.id}`);
  views.get(figure.id)?.finalize();
  const result = await vegaEmbed(element, specification(figure), {
    actions: false, renderer: "svg", config: config(), tooltip: { theme: "custom" },
  });
  views.set(figure.id, result);
  element.dataset.drawn = "true";
}

async function drawAll(selection = figures) {
  document.body.dataset.drawn = "false";
  for (const figure of selection) await draw(figure);
  document.body.dataset.drawn = "true";
}

function fillTable(details) {
  const holder = details.querySelector(".scroll");
  if (holder.firstChild) return;
  const figure = figures.find((each) => each.id === details.dataset.figure);
  const data = Array.isArray(figure.spec.data) ? figure.spec.data[0].values : figure.spec.data.values;
  const rows = data.filter((row) => row.parent === undefined || row.bytes !== undefined);
  const names = [...new Set(rows.flatMap(Object.keys))].filter((name) => !["id", "parent", "order"].includes(name));
  const most = 200, every = Math.ceil(rows.length / most);
  const table = document.createElement("table");
  const head = table.createTHead().insertRow();
  for (const name of names) {
    const cell = document.createElement("th");
    cell.scope = "col";
    cell.textContent = name.replaceAll("_", " ");
    head.append(cell);
  }
  const body = table.createTBody();
  rows.forEach((row, index) => {
    if (index % every && index !== rows.length - 1) return;
    const line = body.insertRow();
    for (const name of names) {
      const cell = line.insertCell();
      cell.textContent = row[name] ?? "";
      if (typeof row[name] === "number") cell.className = "number";
    }
  });
  holder.append(table);
}

for (const input of document.querySelectorAll('input[name="theme"]')) {
  input.addEventListener("change", () => { applyTheme(); drawAll(); });
}
for (const input of document.querySelectorAll('input[name="axis"]')) {
  input.addEventListener("change", () => drawAll(figures.filter((figure) => figure.has_axes)));
}
systemTheme.addEventListener("change", () => { applyTheme(); drawAll(); });
for (const details of document.querySelectorAll("details[data-figure]")) {
  details.addEventListener("toggle", () => { if (details.open) fillTable(details); });
}
applyTheme();
drawAll();
