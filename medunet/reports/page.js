"use strict";
const page = JSON.parse(document.getElementById("document").textContent);
const byId = (id) => document.getElementById(id);
const rows = () => [...(byId("table")?.tBodies[0].rows ?? [])];

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

// Points of the figures know their case.
for (const [id, cases] of Object.entries(page.points)) {
  (byId(id)?.querySelectorAll("use") ?? []).forEach((point, place) => {
    point.dataset.case = cases[place];
    const title = document.createElementNS("http://www.w3.org/2000/svg", "title");
    title.textContent = page.cases[cases[place]];
    point.append(title);
  });
}

// Sort the table by a column; cells without a number stay last in both directions.
for (const head of byId("table")?.tHead.rows[1].cells ?? []) {
  head.querySelector("button").addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    const key = (row) => row.cells[head.cellIndex].dataset.value;
    const compare = (a, b) => {
      if (a === "" || b === "") return (a === "") - (b === "");
      const difference = a - b;
      return down * (Number.isNaN(difference) ? a.localeCompare(b, undefined, { numeric: true }) : difference);
    };
    byId("table").tBodies[0].append(...rows().sort((a, b) => compare(key(a), key(b))));
    for (const other of byId("table").querySelectorAll("th[aria-sort]")) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down > 0 ? "ascending" : "descending");
    document.dispatchEvent(new Event("table"));
  });
}

// Filter the table.
if (byId("table")) {
  const filter = () => {
    const word = byId("filter").value.trim().toLowerCase(), kind = byId("kind").value, below = +byId("below").value;
    byId("below").hidden = kind !== "low";
    for (const row of rows()) {
      const fits = kind === "failed" ? row.dataset.failed : kind === "low" ? row.dataset.low < below : true;
      row.hidden = !fits || !page.cases[row.dataset.case].toLowerCase().includes(word);
    }
    const shown = rows().filter((row) => !row.hidden).length, all = rows().length;
    byId("count").textContent = shown === all ? `${shown} cases` : `${shown} of ${all} cases`;
    document.dispatchEvent(new Event("table"));
  };
  for (const id of ["filter", "kind", "below"]) byId(id).addEventListener("input", filter);
  filter();
}

byId("changed")?.addEventListener("input", (event) => {
  for (const row of byId("settings").tBodies[0].rows) row.hidden = event.target.checked && !row.dataset.changed;
});

// The viewer. A case is a small volume (slices from head to feet, rows from front to back, columns from the patient's
// right to left) with label maps of the same box: the reference, then each prediction. A large image has a coarser grid
// than its labels; slices are counted on the grid of the labels.
const PLANES = [
  { name: "axial", axes: [0, 1, 2], left: "R", top: "A" },
  { name: "coronal", axes: [1, 0, 2], left: "R", top: "S" },
  { name: "sagittal", axes: [2, 0, 1], left: "A", top: "S" },
]; // axes: the one that is cut, rows, columns

// For each class, whether a number of the label maps belongs to it: its own, and those of several classes.
const members = page.classes.map((_, place) => {
  const unions = page.unions.map((places) => +places.includes(place + 1));
  return [0, ...page.classes.map((_, other) => +(other === place)), ...unions];
});

async function decode(index) {
  const packed = JSON.parse(byId(`picture-${index}`).textContent);
  const bytes = Uint8Array.from(atob(packed.labels), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const labels = new Uint8Array(await new Response(stream).arrayBuffer());
  const image = Object.assign(new Image(), { src: "data:image/webp;base64," + packed.image });
  await image.decode();
  const sheet = new OffscreenCanvas(image.width, image.height).getContext("2d", { willReadFrequently: true });
  sheet.drawImage(image, 0, 0);
  const [slices, height, width] = packed.image_shape, size = width * height, [depth, rows, columns] = packed.shape;
  const colours = new Uint32Array(slices * size);
  for (let slice = 0; slice < slices; slice++) {
    const left = (slice % packed.across) * width, top = Math.floor(slice / packed.across) * height;
    colours.set(new Uint32Array(sheet.getImageData(left, top, width, height).data.buffer), slice * size);
  }
  const count = depth * rows * columns;
  const maps = Array.from({ length: packed.maps }, (_, place) => labels.subarray(place * count, (place + 1) * count));
  return { ...packed, colours, maps };
}

// One slice of an array of this shape, row by row.
function cut(values, shape, plane, slice) {
  const strides = [shape[1] * shape[2], shape[2], 1], [own, down, right] = plane.axes;
  const result = new values.constructor(shape[down] * shape[right]);
  for (let row = 0, place = 0; row < shape[down]; row++) {
    let from = slice * strides[own] + row * strides[down];
    for (let column = 0; column < shape[right]; column++, from += strides[right]) result[place++] = values[from];
  }
  return result;
}

// Outlines of a mask of rows x columns, through the middles between voxels (marching squares). Every line runs from the
// middle of one edge of a cell of four voxels to that of another, and every middle begins exactly one line.
function outlines(mask, rows, columns) {
  const inside = (row, column) => row >= 0 && column >= 0 && row < rows && column < columns && mask[row * columns + column];
  const next = new Map(), wide = 2 * columns + 3, key = (y, x) => (2 * y + 2) * wide + 2 * x + 2;
  for (let row = -1; row < rows; row++) {
    for (let column = -1; column < columns; column++) {
      const corners = 8 * inside(row, column) + 4 * inside(row, column + 1) + 2 * inside(row + 1, column + 1) + 1 * inside(row + 1, column);
      const top = key(row, column + .5), right = key(row + .5, column + 1), bottom = key(row + 1, column + .5), left = key(row + .5, column);
      const lines = [
        [], [[left, bottom]], [[bottom, right]], [[left, right]], [[right, top]], [[left, bottom], [right, top]],
        [[bottom, top]], [[left, top]], [[top, left]], [[top, bottom]], [[top, left], [bottom, right]],
        [[top, right]], [[right, left]], [[right, bottom]], [[bottom, left]], [],
      ][corners];
      for (const [from, to] of lines) next.set(from, to);
    }
  }
  const closed = [];
  while (next.size) {
    const line = [];
    for (let at = next.keys().next().value, to; next.has(at); at = to) {
      line.push([(at % wide) / 2 - 1, Math.floor(at / wide) / 2 - 1]);
      to = next.get(at);
      next.delete(at);
    }
    closed.push(line);
  }
  return closed;
}

class Viewer {
  constructor() {
    this.index = -1;
    this.hidden = new Set();
    for (const [place, { name, colour }] of page.classes.entries()) {
      if (!name) continue; // a further tone of the first layer
      const box = element("input", { type: "checkbox", checked: true });
      box.addEventListener("input", () => { this.hidden[box.checked ? "delete" : "add"](place); this.draw(); });
      byId("layers").append(element("label", {}, box, element("span", { className: "swatch", style: `background:${colour}` }), name));
    }
    for (const id of ["predictions", "reference"]) byId(id).addEventListener("input", () => this.draw());
    byId("previous").addEventListener("click", () => this.step(-1));
    byId("next").addEventListener("click", () => this.step(1));
    byId("case").addEventListener("input", (event) => this.show(+event.target.value));
    document.addEventListener("table", () => this.list());
    new ResizeObserver(() => this.draw()).observe(byId("planes"));
    this.list();
    this.show(this.order[0] ?? page.cases.findIndex((_, index) => byId(`picture-${index}`)));
  }

  // Offer the cases as the table shows them.
  list() {
    const listed = rows().filter((row) => !row.hidden).map((row) => +row.dataset.case);
    this.order = (rows().length ? listed : page.cases.map((_, index) => index)).filter((index) => byId(`picture-${index}`));
    const offered = this.order.includes(this.index) || this.index < 0 ? this.order : [this.index, ...this.order];
    byId("case").replaceChildren(...offered.map((index) => new Option(page.cases[index], index, false, index === this.index)));
  }

  step(by) {
    const place = this.order.indexOf(this.index) + by;
    if (this.order.length) this.show(this.order[(place + this.order.length) % this.order.length]);
  }

  async show(index) {
    if (index < 0 || !byId(`picture-${index}`)) return;
    this.index = index;
    const volume = await decode(index);
    if (this.index !== index) return; // another case was chosen meanwhile
    this.volume = volume;
    this.planes = volume.shape[0] === 1 ? [PLANES[0]] : PLANES;
    this.count();
    this.slices = this.profiles.map((counts) => {
      // the slice with most that is wrong, else with most foreground, else the middle slice
      const found = counts.map((entry) => entry[+counts.some(([, wrong]) => wrong)]), most = Math.max(...found);
      return most ? found.indexOf(most) : found.length >> 1;
    });
    this.list();
    for (const row of rows()) row.classList.toggle("shown", +row.dataset.case === index);
    this.describe();
    this.build();
    this.draw();
    byId("viewer").dataset.case = page.cases[index];
  }

  // Repeat the scores of the table, and what to know about the picture.
  describe() {
    const row = rows().find((entry) => +entry.dataset.case === this.index), heads = [...(byId("table")?.tHead.rows[1].cells ?? [])];
    const scores = heads.map((head, place) => [head.textContent.trim(), row?.cells[place].textContent.trim()]).slice(1);
    const means = scores.filter(([name]) => /^mean (Dice|AP)/.test(name) || name.includes(" - "));
    byId("score").replaceChildren(...means.map((entry) => element("span", { textContent: entry.join(" ") })));
    const remarks = [this.volume.is_cut && "Only the surroundings of the labels are shown.",
      this.volume.is_coarser && "The grid is coarser than the image's; the numbers are not.",
      !this.volume.is_placed && this.volume.shape[0] > 1 && "The directions in the patient are not known."];
    byId("remark").textContent = remarks.filter(Boolean).join(" ");
  }

  // For every axis and slice: how many voxels are foreground or wrong, and how many are wrong.
  count() {
    const { shape, maps: [reference, ...predictions] } = this.volume;
    this.profiles = shape.map((size) => Array.from({ length: size }, () => [0, 0]));
    for (let place = 0; place < reference.length; place++) {
      const wrong = predictions.some((map) => map[place] !== reference[place]);
      if (!wrong && !reference[place]) continue;
      const row = Math.floor(place / shape[2]);
      [Math.floor(row / shape[1]), row % shape[1], place % shape[2]].forEach((at, axis) => {
        this.profiles[axis][at][0]++;
        this.profiles[axis][at][1] += wrong;
      });
    }
  }

  build() {
    const { shape, spacing_mm: spacing, letters, is_placed: placed } = this.volume, planar = this.planes.length === 1;
    const column = (plane, ...children) => {
      const [, down, right] = plane.axes, ratio = (shape[right] * spacing[right]) / (shape[down] * spacing[down]);
      const cell = element("div", { className: "plane" }, ...children), aspect = Math.min(3, Math.max(1 / 3, ratio));
      cell.style.cssText = `flex: ${aspect} 1 0; --aspect: ${aspect}; ${planar ? `max-width: calc(${aspect} * 85vh)` : ""}`;
      return cell;
    };
    this.canvases = [];
    const pictures = letters.map((letter, run) => this.planes.map((plane, number) => {
      const canvas = element("canvas", { role: "img" }), cell = column(plane, canvas);
      if (!planar) {
        cell.append(element("span", { className: "caption" }));
        for (const side of placed ? ["left", "top"] : []) cell.append(element("span", { className: `side ${side}`, textContent: plane[side] }));
        canvas.addEventListener("click", (event) => this.point(plane, canvas, event));
      }
      if (page.runs.length > 1 && number === 0) cell.append(element("b", { className: "badge", textContent: letter }));
      this.canvases.push({ plane, canvas, run });
      return cell;
    }));
    const lines = planar ? [element("div", { className: "row pictures" }, ...pictures.flat())] : pictures.map((cells) => element("div", { className: "row" }, ...cells));
    this.sliders = (planar ? [] : this.planes).map((plane) => {
      const own = plane.axes[0], slider = element("input", { type: "range", min: 1, max: shape[own], step: 1, value: this.slices[own] + 1 });
      slider.setAttribute("aria-label", `${plane.name} slice`);
      slider.addEventListener("input", () => { this.slices[own] = slider.value - 1; this.draw(); });
      return slider;
    });
    if (!planar) {
      lines.push(element("div", { className: "row sliders" }, ...this.planes.map((plane, place) =>
        column(plane, element("span", { className: "name", textContent: plane.name }), this.band(this.profiles[plane.axes[0]]), this.sliders[place]))));
    }
    byId("hint").hidden = planar;
    byId("planes").replaceChildren(...lines);
  }

  // How much label each slice has, and in colour how much of it is wrong.
  band(counts) {
    const canvas = element("canvas", { className: "band", width: counts.length * 4, height: 24 });
    const pen = canvas.getContext("2d"), most = Math.max(1, ...counts.map(([all]) => all));
    counts.forEach((entry, place) => entry.forEach((number, kind) => {
      pen.fillStyle = kind ? "#e0457b" : "#8a919a80";
      pen.fillRect(4 * place, 24 - (24 * number) / most, 4, 24);
    }));
    return canvas;
  }

  point(plane, canvas, event) {
    const [, down, right] = plane.axes, box = canvas.getBoundingClientRect(), { shape } = this.volume;
    const at = (share, count) => Math.min(count - 1, Math.max(0, Math.floor(share * count)));
    this.slices[right] = at((event.clientX - box.left) / box.width, shape[right]);
    this.slices[down] = at((event.clientY - box.top) / box.height, shape[down]);
    this.planes.forEach((entry, place) => { this.sliders[place].value = this.slices[entry.axes[0]] + 1; });
    this.draw();
  }

  draw() {
    for (const entry of this.canvases ?? []) this.paint(entry);
  }

  paint({ plane, canvas, run }) {
    const { shape, image_shape: imageShape, colours, maps, is_placed: placed } = this.volume, [own, down, right] = plane.axes;
    const [rows, columns] = [shape[down], shape[right]], slice = this.slices[own], scale = devicePixelRatio || 1;
    const width = canvas.width = Math.max(1, Math.round(canvas.clientWidth * scale));
    const height = canvas.height = Math.max(1, Math.round(canvas.clientHeight * scale));
    const grey = cut(colours, imageShape, plane, Math.floor(((slice + .5) / shape[own]) * imageShape[own]));
    const small = new OffscreenCanvas(imageShape[right], imageShape[down]), pen = canvas.getContext("2d");
    small.getContext("2d").putImageData(new ImageData(new Uint8ClampedArray(grey.buffer), small.width), 0, 0);
    pen.imageSmoothingQuality = "high";
    pen.drawImage(small, 0, 0, width, height);
    const lines = (map, dash, thickness, colourOf) => {
      const values = cut(map, shape, plane, slice), present = [...new Set(values)];
      pen.setLineDash(dash.map((length) => length * scale));
      pen.lineWidth = thickness * scale;
      for (const [place, inside] of members.entries()) {
        if (this.hidden.has(page.classes[place].name ? place : 0) || !present.some((value) => inside[value])) continue;
        pen.beginPath();
        for (const line of outlines(values.map((value) => inside[value]), rows, columns)) {
          line.forEach(([x, y], place) => pen[place ? "lineTo" : "moveTo"](((x + .5) / columns) * width, ((y + .5) / rows) * height));
          pen.closePath();
        }
        pen.strokeStyle = colourOf(place);
        pen.stroke();
      }
      pen.setLineDash([]);
    };
    if (byId("predictions").checked) lines(maps[1 + run], [], 1.8, (place) => page.classes[place].colour);
    if (byId("reference").checked) lines(maps[0], [4, 3], 1.2, (place) => page.classes[place].marked ? page.classes[place].colour : "#ffffff");
    if (this.planes.length > 1) { // where the other planes cut this one
      pen.fillStyle = "#ffffffb0";
      const x = ((this.slices[right] + .5) / columns) * width, y = ((this.slices[down] + .5) / rows) * height, long = 7 * scale;
      for (const top of [0, height - long]) pen.fillRect(x - scale / 2, top, scale, long);
      for (const left of [0, width - long]) pen.fillRect(left, y - scale / 2, long, scale);
      canvas.parentElement.querySelector(".caption").textContent = `${placed ? plane.name : `axis ${own}`} ${slice + 1}/${shape[own]}`;
    }
    canvas.setAttribute("aria-label", `${page.cases[this.index]}, ${plane.name} slice ${slice + 1} of ${shape[own]}`);
  }
}

if (byId("viewer")) {
  const viewer = new Viewer();
  document.addEventListener("click", (event) => { // a row of the table or a point of a figure
    const chosen = event.target.closest?.("tr[data-case], use[data-case]");
    if (!chosen) return;
    viewer.show(+chosen.dataset.case);
    if (byId(`picture-${chosen.dataset.case}`)) byId("slices").scrollIntoView();
  });
}
