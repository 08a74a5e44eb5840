// The viewer: a case is a small volume (slices from head to feet, rows from front to back, columns from the patient's
// right to left) with label maps of the same box: the reference, then each prediction. A large image has a coarser grid
// than its labels; slices are counted on that of the labels.
const PLANES = [
  { name: "axial", axes: [0, 1, 2], left: "R", top: "A" },
  { name: "coronal", axes: [1, 0, 2], left: "R", top: "S" },
  { name: "sagittal", axes: [2, 0, 1], left: "A", top: "S" },
]; // axes: the one that is cut, rows, columns

// For each class, whether a number of the label maps belongs to it: its own, and those of several classes at once.
const members = page.classes.map((_, place) => {
  const inside = new Uint8Array(256);
  inside[place + 1] = 1;
  page.unions.forEach((places, number) => { inside[page.classes.length + 1 + number] = +places.includes(place + 1); });
  return inside;
});

async function decode(index) {
  const found = JSON.parse(byId(`picture-${index}`).textContent);
  const [slices, height, width] = found.imageShape, [, rows, columns] = found.shape;
  const bytes = Uint8Array.from(atob(found.labels), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const labels = new Uint8Array(await new Response(stream).arrayBuffer());
  const image = new Image();
  image.src = "data:image/webp;base64," + found.image;
  await image.decode();
  const sheet = new OffscreenCanvas(image.width, image.height).getContext("2d", { willReadFrequently: true });
  sheet.drawImage(image, 0, 0);
  const size = width * height, colours = new Uint8ClampedArray(4 * slices * size);
  for (let slice = 0; slice < slices; slice++) {
    const left = (slice % found.across) * width, top = Math.floor(slice / found.across) * height;
    colours.set(sheet.getImageData(left, top, width, height).data, 4 * slice * size);
  }
  const count = found.shape[0] * rows * columns;
  const maps = Array.from({ length: found.maps }, (_, place) => labels.subarray(place * count, (place + 1) * count));
  const grey = { shape: found.imageShape, strides: [size, width, 1] };
  return { ...found, colours, grey, maps, strides: [rows * columns, columns, 1] };
}

// Places of one slice in an array, row by row.
function cut(volume, plane, slice, each) {
  const [own, down, right] = plane.axes, [rows, columns] = [volume.shape[down], volume.shape[right]];
  for (let row = 0, place = 0; row < rows; row++) {
    let from = slice * volume.strides[own] + row * volume.strides[down];
    for (let column = 0; column < columns; column++, place++, from += volume.strides[right]) each(place, from);
  }
}

// Outlines of a mask of rows x columns, through the middles between voxels (marching squares). Every line runs from the
// middle of one edge of a cell of four voxels to that of another, and every middle begins exactly one line.
function outlines(mask, rows, columns) {
  const inside = (row, column) => row >= 0 && column >= 0 && row < rows && column < columns && mask[row * columns + column];
  const next = new Map(), wide = 2 * columns + 3, key = (y, x) => (2 * y + 2) * wide + 2 * x + 2;
  for (let row = -1; row < rows; row++) {
    for (let column = -1; column < columns; column++) {
      const corners = 8 * inside(row, column) + 4 * inside(row, column + 1) + 2 * inside(row + 1, column + 1) + 1 * inside(row + 1, column);
      if (corners === 0 || corners === 15) continue;
      const top = key(row, column + .5), right = key(row + .5, column + 1), bottom = key(row + 1, column + .5), left = key(row + .5, column);
      const lines = [
        [], [[left, bottom]], [[bottom, right]], [[left, right]], [[right, top]], [[left, bottom], [right, top]],
        [[bottom, top]], [[left, top]], [[top, left]], [[top, bottom]], [[top, left], [bottom, right]],
        [[top, right]], [[right, left]], [[right, bottom]], [[bottom, left]], [],
      ][corners];
      for (const [from, to] of lines) next.set(from, to);
    }
  }
  const found = [];
  while (next.size) {
    const [start] = next.keys(), line = [];
    for (let at = start; next.has(at);) {
      line.push([(at % wide) / 2 - 1, Math.floor(at / wide) / 2 - 1]);
      const to = next.get(at);
      next.delete(at);
      at = to;
    }
    found.push(line);
  }
  return found;
}

class Viewer {
  constructor() {
    this.index = -1;
    this.hidden = new Set();
    for (const [place, entry] of page.classes.entries()) {
      const label = document.createElement("label"), box = document.createElement("input"), swatch = document.createElement("span");
      Object.assign(box, { type: "checkbox", checked: true });
      box.addEventListener("input", () => { this.hidden[box.checked ? "delete" : "add"](place + 1); this.draw(); });
      swatch.className = "swatch";
      swatch.style.background = entry.colour;
      label.append(box, swatch, entry.name);
      byId("layers").append(label);
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

  // The choice of cases follows the table.
  list() {
    const has = (index) => byId(`picture-${index}`);
    const listed = rows().filter((row) => !row.hidden).map((row) => +row.dataset.case);
    this.order = (rows().length ? listed : page.cases.map((_, index) => index)).filter(has);
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
    if (this.index !== index) return; // another case was asked for meanwhile
    this.volume = volume;
    this.planes = volume.shape[0] === 1 ? [PLANES[0]] : PLANES;
    this.count();
    this.slices = [0, 1, 2].map((axis) => this.worst(axis));
    this.list();
    for (const row of rows()) row.classList.toggle("shown", +row.dataset.case === index);
    this.tell();
    this.build();
    this.draw();
    byId("viewer").dataset.case = page.cases[index];
  }

  tell() {
    const row = rows().find((entry) => +entry.dataset.case === this.index), heads = byId("table")?.tHead.rows[1].cells ?? [];
    const told = [...heads].slice(1).map((head, place) => [head.textContent.trim(), row?.cells[place + 1].textContent.trim()]);
    const means = told.filter(([name]) => name.startsWith("mean Dice") || name.includes(" - "));
    byId("score").replaceChildren(...means.map(([name, value]) => Object.assign(document.createElement("span"), { textContent: `${name} ${value}` })));
    const remarks = [this.volume.cut && "Only the surroundings of the labels are shown.",
      this.volume.coarser && "The grid is coarser than the image's; the numbers are not.",
      !this.volume.placed && this.volume.shape[0] > 1 && "The directions in the patient are not known."];
    byId("remark").textContent = remarks.filter(Boolean).join(" ");
  }

  // For every axis and slice: how many voxels are foreground or wrong, and how many are wrong.
  count() {
    const { shape, maps: [reference, ...predictions] } = this.volume;
    this.profiles = shape.map((size) => Array.from({ length: size }, () => [0, 0]));
    for (let slice = 0, place = 0; slice < shape[0]; slice++) {
      for (let row = 0; row < shape[1]; row++) {
        for (let column = 0; column < shape[2]; column++, place++) {
          const wrong = predictions.some((map) => map[place] !== reference[place]);
          if (!wrong && !reference[place]) continue;
          [slice, row, column].forEach((at, axis) => { this.profiles[axis][at][0]++; this.profiles[axis][at][1] += wrong; });
        }
      }
    }
  }

  // The slice with most that is wrong, else with most foreground, else the middle one.
  worst(axis) {
    const counts = this.profiles[axis], kind = counts.some(([, wrong]) => wrong) ? 1 : 0;
    const found = counts.map((entry) => entry[kind]), most = Math.max(...found);
    return most ? found.indexOf(most) : found.length >> 1;
  }

  build() {
    const { shape, spacing, letters } = this.volume, host = byId("planes");
    host.replaceChildren();
    this.canvases = [];
    const aspect = (plane) => Math.min(3, Math.max(1 / 3, (shape[plane.axes[2]] * spacing[plane.axes[2]]) / (shape[plane.axes[1]] * spacing[plane.axes[1]])));
    const column = (plane) => {
      const element = document.createElement("div");
      element.className = "plane";
      element.style.flex = `${aspect(plane)} 1 0`;
      if (this.planes.length === 1) element.style.maxWidth = `calc(${aspect(plane)} * 85vh)`;
      return element;
    };
    const line = (kind) => host.appendChild(Object.assign(document.createElement("div"), { className: kind }));
    const planar = this.planes.length === 1;
    byId("hint").hidden = planar;
    let row = null;
    for (const [run, letter] of letters.entries()) {
      if (!row || !planar) row = line(planar ? "row pictures" : "row");
      for (const [number, plane] of this.planes.entries()) {
        const cell = column(plane), canvas = document.createElement("canvas");
        canvas.style.aspectRatio = aspect(plane);
        canvas.setAttribute("role", "img");
        cell.append(canvas);
        if (this.planes.length > 1) {
          cell.append(Object.assign(document.createElement("span"), { className: "caption" }));
          for (const side of this.volume.placed ? ["left", "top"] : []) {
            cell.append(Object.assign(document.createElement("span"), { className: `side ${side}`, textContent: plane[side] }));
          }
          canvas.addEventListener("click", (event) => this.point(plane, canvas, event));
        }
        if (page.runs.length > 1 && number === 0) { // of several runs, the letter
          const badge = Object.assign(document.createElement("b"), { className: "badge", textContent: letter });
          badge.style.cssText = "position:absolute;left:.4rem;top:.4rem;background:#000a";
          cell.append(badge);
        }
        row.append(cell);
        this.canvases.push({ plane, canvas, run });
      }
    }
    this.sliders = [];
    if (planar) return;
    row = line("row sliders");
    for (const plane of this.planes) {
      const cell = column(plane), band = document.createElement("canvas"), slider = document.createElement("input"), own = plane.axes[0];
      band.className = "band";
      Object.assign(slider, { type: "range", min: 1, max: shape[own], step: 1, value: this.slices[own] + 1 });
      slider.setAttribute("aria-label", `${plane.name} slice`);
      slider.addEventListener("input", () => { this.slices[own] = slider.value - 1; this.draw(); });
      cell.append(Object.assign(document.createElement("span"), { className: "name", textContent: plane.name }), band, slider);
      row.append(cell);
      this.sliders.push(slider);
      this.band(band, this.profiles[own]);
    }
  }

  band(canvas, counts) {
    Object.assign(canvas, { width: counts.length * 4, height: 24 });
    const pen = canvas.getContext("2d"), most = Math.max(1, ...counts.map(([all]) => all));
    counts.forEach(([all, wrong], place) => {
      pen.fillStyle = "#8a919a80";
      pen.fillRect(4 * place, 24 - (24 * all) / most, 4, 24);
      pen.fillStyle = "#e0457b";
      pen.fillRect(4 * place, 24 - (24 * wrong) / most, 4, 24);
    });
  }

  point(plane, canvas, event) {
    const [, down, right] = plane.axes, box = canvas.getBoundingClientRect(), shape = this.volume.shape;
    const at = (share, count) => Math.min(count - 1, Math.max(0, Math.floor(share * count)));
    this.slices[right] = at((event.clientX - box.left) / box.width, shape[right]);
    this.slices[down] = at((event.clientY - box.top) / box.height, shape[down]);
    this.planes.forEach((entry, place) => { this.sliders[place].value = this.slices[entry.axes[0]] + 1; });
    this.draw();
  }

  draw() {
    if (!this.volume || !this.canvases) return;
    for (const entry of this.canvases) this.paint(entry);
  }

  paint({ plane, canvas, run }) {
    const { shape, grey, colours, maps } = this.volume, [own, down, right] = plane.axes;
    const [rows, columns] = [shape[down], shape[right]], slice = this.slices[own], scale = devicePixelRatio || 1;
    canvas.width = Math.max(1, Math.round(canvas.clientWidth * scale));
    canvas.height = Math.max(1, Math.round(canvas.clientHeight * scale));
    const picture = new ImageData(grey.shape[right], grey.shape[down]);
    cut(grey, plane, Math.floor(((slice + .5) / shape[own]) * grey.shape[own]), (to, from) => {
      for (let channel = 0; channel < 4; channel++) picture.data[4 * to + channel] = colours[4 * from + channel];
    });
    const small = new OffscreenCanvas(picture.width, picture.height);
    small.getContext("2d").putImageData(picture, 0, 0);
    const pen = canvas.getContext("2d");
    pen.imageSmoothingQuality = "high";
    pen.drawImage(small, 0, 0, canvas.width, canvas.height);
    const lines = (map, style) => {
      const values = new Uint8Array(rows * columns), present = new Set();
      cut(this.volume, plane, slice, (to, from) => { values[to] = map[from]; if (map[from]) present.add(map[from]); });
      for (const [place, inside] of members.entries()) {
        if (this.hidden.has(place + 1) || ![...present].some((value) => inside[value])) continue;
        pen.beginPath();
        for (const line of outlines(values.map((entry) => inside[entry]), rows, columns)) {
          line.forEach(([x, y], number) => {
            pen[number ? "lineTo" : "moveTo"](((x + .5) / columns) * canvas.width, ((y + .5) / rows) * canvas.height);
          });
          pen.closePath();
        }
        style(page.classes[place].colour);
        pen.stroke();
      }
    };
    if (byId("predictions").checked) {
      lines(maps[1 + run], (colour) => { pen.setLineDash([]); pen.lineWidth = 1.8 * scale; pen.strokeStyle = colour; });
    }
    if (byId("reference").checked) {
      lines(maps[0], () => { pen.setLineDash([4 * scale, 3 * scale]); pen.lineWidth = 1.2 * scale; pen.strokeStyle = "#ffffff"; });
    }
    pen.setLineDash([]);
    if (this.planes.length > 1) { // where the other planes cut this one
      pen.fillStyle = "#ffffffb0";
      const x = ((this.slices[right] + .5) / columns) * canvas.width, y = ((this.slices[down] + .5) / rows) * canvas.height, long = 7 * scale;
      for (const top of [0, canvas.height - long]) pen.fillRect(x - scale / 2, top, scale, long);
      for (const left of [0, canvas.width - long]) pen.fillRect(left, y - scale / 2, long, scale);
      canvas.parentElement.querySelector(".caption").textContent = `${this.volume.placed ? plane.name : `axis ${own}`} ${slice + 1}/${shape[own]}`;
    }
    canvas.setAttribute("aria-label", `${page.cases[this.index]}, ${plane.name} slice ${slice + 1} of ${shape[own]}`);
  }
}

if (byId("viewer")) {
  const viewer = new Viewer();
  const jump = (index) => {
    viewer.show(index);
    if (byId(`picture-${index}`)) byId("slices").scrollIntoView();
  };
  byId("table")?.tBodies[0].addEventListener("click", (event) => {
    const row = event.target.closest("tr[data-case]");
    if (row) jump(+row.dataset.case);
  });
  document.addEventListener("click", (event) => {
    const point = event.target.closest?.("use[data-case]");
    if (point) jump(+point.dataset.case);
  });
}
