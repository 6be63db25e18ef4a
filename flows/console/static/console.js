// What the console's pages do beyond links and forms: tables that sort, filter and download; the filter of a form's
// columns; the timeline's slider; and the prediction before the last change.
"use strict";

function cells(row) {
  return [...row.children].map((cell) => cell.textContent.trim());
}

function comparable(text) {
  const number = Number(text.replace(/,/g, "").replace("−", "-").split(" ")[0]);
  return text !== "" && Number.isFinite(number) ? number : text;
}

function sort(table, place, header) {
  const down = header.getAttribute("aria-sort") === "ascending";
  for (const other of header.parentElement.children) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", down ? "descending" : "ascending");
  const body = table.tBodies[0];
  const rows = [...body.rows].map((row) => [comparable(cells(row)[place] ?? ""), row]);
  rows.sort(([one], [other]) => (typeof one === typeof other ? (one < other ? -1 : one > other ? 1 : 0) : typeof one === "number" ? -1 : 1));
  if (down) rows.reverse();
  body.append(...rows.map(([, row]) => row));
}

function filter(table, text) {
  const wanted = text.toLowerCase();
  for (const row of table.tBodies[0].rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
}

function download(table) {
  const quoted = (text) => {
    const safe = /^[=+@\t]/.test(text) ? `'${text}` : text; // a spreadsheet must not run it as a formula
    return /[",\n]/.test(safe) ? `"${safe.replace(/"/g, '""')}"` : safe;
  };
  const rows = [...table.tHead.rows, ...[...table.tBodies[0].rows].filter((row) => !row.hidden)];
  const text = rows.map((row) => cells(row).map(quoted).join(",")).join("\r\n");
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  link.download = `${table.dataset.table}.csv`;
  link.click();
  URL.revokeObjectURL(link.href);
}

const LEAST_ROWS = 3; // a shorter table needs no tools
const FILTERED_ROWS = 6; // a shorter one needs no filter

function equip(table) {
  if (table.closest("[hx-trigger^=every]")) return; // drawn anew every few seconds
  if (table.dataset.equipped || !table.tHead || table.tBodies[0].rows.length < LEAST_ROWS) return;
  if (!table.dataset.table) {
    const heading = table.closest(".card, figure, section")?.querySelector("h2, h3, h4");
    table.dataset.table = heading ? heading.textContent.trim() : "table";
  }
  table.dataset.equipped = "yes";
  [...table.tHead.rows[0].cells].forEach((header, place) => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "sort";
    if (!header.textContent.trim() || header.querySelector(".hidden")) return; // a bar, or a value beside its bar
    button.append(...header.childNodes);
    button.addEventListener("click", () => sort(table, place, header));
    header.append(button);
  });
  const tools = document.createElement("div");
  tools.className = "tools";
  const field = document.createElement("input");
  field.type = "search";
  field.placeholder = "filter";
  field.setAttribute("aria-label", `filter the table ${table.dataset.table}`);
  field.addEventListener("input", () => filter(table, field.value));
  const save = document.createElement("button");
  save.type = "button";
  save.textContent = "csv";
  save.setAttribute("aria-label", `download the table ${table.dataset.table} as csv`);
  save.addEventListener("click", () => download(table));
  if (table.tBodies[0].rows.length >= FILTERED_ROWS) tools.append(field);
  tools.append(save);
  (table.closest(".scroll") || table).before(tools);
}

// Charts: the values of a mark under the pointer, and an enlarged view that zooms with the wheel and moves with the pointer.
const tip = document.createElement("div");
tip.className = "tip";
tip.hidden = true;

document.addEventListener("pointermove", (event) => {
  const values = event.target.dataset ? event.target.dataset.values : undefined;
  tip.hidden = !values;
  if (!values) return;
  tip.textContent = values;
  (event.target.closest("dialog") || document.body).append(tip);
  const left = Math.min(event.clientX + 14, window.innerWidth - tip.offsetWidth - 8);
  tip.style.left = `${Math.max(4, left)}px`;
  tip.style.top = `${event.clientY > window.innerHeight - 60 ? event.clientY - tip.offsetHeight - 12 : event.clientY + 16}px`;
});

function zoomable(svg) {
  const box = svg.viewBox.baseVal;
  const whole = [box.x, box.y, box.width, box.height];
  const place = (event) => {
    const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    return [point.x, point.y];
  };
  const zoom = (factor, x, y) => {
    const width = Math.min(whole[2], box.width * factor), height = Math.min(whole[3], box.height * factor);
    box.x = x - (x - box.x) * (width / box.width);
    box.y = y - (y - box.y) * (height / box.height);
    box.width = width;
    box.height = height;
    if (width === whole[2]) [box.x, box.y] = whole;
  };
  svg.addEventListener("wheel", (event) => { event.preventDefault(); zoom(event.deltaY < 0 ? 0.8 : 1.25, ...place(event)); }, { passive: false });
  let from = null;
  svg.addEventListener("pointerdown", (event) => { from = place(event); svg.setPointerCapture(event.pointerId); });
  svg.addEventListener("pointerup", () => { from = null; });
  svg.addEventListener("pointermove", (event) => {
    if (!from) return;
    const [x, y] = place(event);
    box.x -= x - from[0];
    box.y -= y - from[1];
  });
  return (factor) => zoom(factor, box.x + box.width / 2, box.y + box.height / 2);
}

function enlarge(figure) {
  const dialog = document.createElement("dialog");
  dialog.className = "enlarged";
  const svg = figure.querySelector("svg").cloneNode(true);
  dialog.setAttribute("aria-label", svg.getAttribute("aria-label"));
  const tools = document.createElement("div");
  tools.className = "tools";
  const zoom = zoomable(svg);
  for (const [name, act] of [["Closer", () => zoom(0.7)], ["Further", () => zoom(1.4)], ["Close", () => dialog.close()]]) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = name;
    button.addEventListener("click", act);
    tools.append(button);
  }
  dialog.append(tools, svg);
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
}

function offerToEnlarge(figure) {
  const svg = figure.querySelector("svg[role=img]");
  if (!svg || figure.dataset.equipped) return;
  figure.dataset.equipped = "yes";
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "enlarge";
  button.setAttribute("aria-label", `enlarge the chart ${svg.getAttribute("aria-label")}`);
  button.addEventListener("click", () => enlarge(figure));
  const tools = document.createElement("div");
  tools.className = "tools";
  tools.append(button);
  figure.append(tools);
}

function prepare(root) {
  root.querySelectorAll("figure.card").forEach(offerToEnlarge);
  root.querySelectorAll("table").forEach(equip);
  root.querySelectorAll(".scroll").forEach((region) => { region.tabIndex = 0; }); // the arrow keys move a wide table
  root.querySelectorAll("[data-filter]").forEach((field) => {
    field.addEventListener("input", () => {
      const wanted = field.value.toLowerCase();
      for (const label of document.getElementById(field.dataset.filter).children) label.hidden = !label.textContent.toLowerCase().includes(wanted);
    });
  });
  root.querySelectorAll("input[data-scrub]").forEach((day) => {
    const slider = document.getElementById(day.dataset.scrub);
    slider?.addEventListener("input", () => {
      const at = new Date(`${slider.dataset.first}T00:00:00Z`);
      at.setUTCDate(at.getUTCDate() + Number(slider.value));
      day.value = at.toISOString().slice(0, 10);
    });
  });
}

document.addEventListener("DOMContentLoaded", () => prepare(document));
document.addEventListener("htmx:afterSwap", (event) => prepare(event.target));
document.addEventListener("htmx:configRequest", (event) => {
  const before = document.querySelector("[data-before]"); // a search for columns is no value of the row
  if (event.detail.verb === "post" && before) event.detail.parameters.before = before.dataset.before;
});
document.addEventListener("htmx:beforeSwap", (event) => {
  if ([404, 422, 500].includes(event.detail.xhr.status)) event.detail.shouldSwap = true; // its text is the reason
});
// A console that has ended, or another machine that cannot be reached: the page says that it is old.
for (const [name, lost] of [["htmx:sendError", true], ["htmx:timeout", true], ["htmx:afterRequest", false]]) {
  document.addEventListener(name, (event) => {
    const note = document.getElementById("lost");
    if (note && (lost || event.detail.xhr?.status)) note.hidden = !lost;
  });
}
// The overview goes on where a person left it: what they opened stays open when it is drawn anew, and the focus where it was.
const FOCUSABLE = "a, button, input, summary, [tabindex]";
let opened = [], focused = -1;
document.addEventListener("htmx:beforeSwap", (event) => {
  opened = [...event.target.querySelectorAll("details")].map((each) => each.open);
  focused = [...event.target.querySelectorAll(FOCUSABLE)].indexOf(document.activeElement);
});
document.addEventListener("htmx:afterSwap", (event) => {
  [...event.target.querySelectorAll("details")].forEach((each, place) => { each.open = each.open || Boolean(opened[place]); });
  if (focused >= 0) [...event.target.querySelectorAll(FOCUSABLE)][focused]?.focus({ preventScroll: true });
});
