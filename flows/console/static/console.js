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

function equip(table) {
  if (table.dataset.equipped || !table.tHead) return;
  table.dataset.equipped = "yes";
  [...table.tHead.rows[0].cells].forEach((header, place) => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "sort";
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
  tools.append(field, save);
  table.parentElement.before(tools);
}

function prepare(root) {
  root.querySelectorAll("table[data-table]").forEach(equip);
  root.querySelectorAll("[data-filter]").forEach((field) => {
    field.addEventListener("input", () => {
      const wanted = field.value.toLowerCase();
      for (const label of document.getElementById(field.dataset.filter).children) label.hidden = !label.textContent.toLowerCase().includes(wanted);
    });
  });
  root.querySelectorAll("input[data-scrub]").forEach((day) => {
    const slider = document.getElementById(day.dataset.scrub);
    slider.addEventListener("input", () => {
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
  if (event.detail.xhr.status === 422) event.detail.shouldSwap = true; // its text is the reason
});
// The overview goes on where a person left it: what they opened stays open when it is drawn anew.
let opened = [];
document.addEventListener("htmx:beforeSwap", (event) => {
  opened = [...event.target.querySelectorAll("details")].map((each) => each.open);
});
document.addEventListener("htmx:afterSwap", (event) => {
  [...event.target.querySelectorAll("details")].forEach((each, place) => { each.open = each.open || Boolean(opened[place]); });
});
