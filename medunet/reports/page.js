"use strict";
const page = JSON.parse(document.getElementById("document").textContent);
const byId = (id) => document.getElementById(id);

// Points of the figures know their case.
for (const [id, cases] of Object.entries(page.points)) {
  const points = byId(id)?.querySelectorAll("use") ?? [];
  points.forEach((point, place) => {
    point.dataset.case = cases[place];
    const title = document.createElementNS("http://www.w3.org/2000/svg", "title");
    title.textContent = page.cases[cases[place]];
    point.append(title);
  });
}

// Sort the table by a column; cells without a number stay last either way.
for (const head of document.querySelectorAll("th[data-column]")) {
  head.querySelector("button").addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    const body = head.closest("table").tBodies[0];
    const key = (row) => row.cells[head.dataset.column].dataset.value;
    const compare = (a, b) => {
      if (a === "" || b === "") return (a === "") - (b === "");
      const difference = a - b;
      return down * (Number.isNaN(difference) ? a.localeCompare(b, undefined, { numeric: true }) : difference);
    };
    body.append(...[...body.rows].sort((a, b) => compare(key(a), key(b))));
    for (const other of head.closest("thead").querySelectorAll("th[aria-sort]")) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down > 0 ? "ascending" : "descending");
    document.dispatchEvent(new Event("table"));
  });
}

// Filter it.
const rows = () => [...(byId("table")?.tBodies[0].rows ?? [])];
if (byId("table")) {
  const filter = () => {
    const word = byId("filter").value.trim().toLowerCase(), kind = byId("kind").value;
    byId("below").hidden = kind !== "low";
    let shown = 0;
    for (const row of rows()) {
      const named = page.cases[row.dataset.case].toLowerCase().includes(word);
      const fits = kind === "failed" ? row.dataset.failed : kind === "low" ? row.dataset.low < +byId("below").value : true;
      row.hidden = !(named && fits);
      shown += !row.hidden;
    }
    byId("count").textContent = shown === rows().length ? `${shown} cases` : `${shown} of ${rows().length} cases`;
    document.dispatchEvent(new Event("table"));
  };
  for (const id of ["filter", "kind", "below"]) byId(id).addEventListener("input", filter);
  filter();
}

byId("changed")?.addEventListener("input", (event) => {
  for (const row of byId("settings").tBodies[0].rows) row.hidden = event.target.checked && !row.dataset.changed;
});
