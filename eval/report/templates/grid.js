"use strict";
// The image grid. Only the rows of one page are in the document, so 10,000 prompts are as fast as ten.
const DATA = JSON.parse(document.getElementById("grid-data").textContent);
const byId = (id) => document.getElementById(id);
const state = { split: 0, query: "", order: "original", page: 0 };
const grid = () => DATA.grids[state.split];
const columns = () => grid().columns.filter((column) => column.shown);

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

// ---- an image: its file, thumbnail, caption and scores
const pad = (index) => String(index).padStart(6, "0");
function fileOf(column, row) {
  const index = pad(grid().indices[row]);
  return column.name === "real" ? `real/${index}.webp` : `samples/${encodeURIComponent(column.name)}/${index}.png`;
}
const thumbOf = (column, row) => (row in column.thumbs ? `data:image/webp;base64,${column.thumbs[row]}` : fileOf(column, row));
const isMissing = (column, row) => column.missing.includes(row);
const captionOf = (row) => grid().captions[row];
const alignmentOf = (name, row) => grid().scores[name]?.alignment[row];
const gainOf = (row) => alignmentOf(grid().ours, row) - alignmentOf(grid().baseline, row);
const signed = (value) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(1);

// ---- files that are not beside the report
const notHere = () => { for (const told of document.querySelectorAll(".not-here")) told.hidden = false; };
for (const image of document.querySelectorAll(".card img")) {
  if (image.complete && !image.naturalWidth) notHere();
  image.addEventListener("error", notHere);
}

// ---- which rows, in which order
let rows = [];
function choose() {
  const { captions, baseline } = grid();
  const words = state.query.toLowerCase().split(/\s+/).filter(Boolean);
  rows = captions.map((_, row) => row).filter((row) => {
    const caption = captions[row].toLowerCase();
    return words.every((word) => caption.includes(word));
  });
  const sign = { gain: -1, loss: 1 }[state.order];
  if (sign && baseline) rows.sort((a, b) => sign * (gainOf(a) - gainOf(b)) || a - b);
}

// ---- the page of them
function thumb(column, row) {
  const caption = captionOf(row), score = alignmentOf(column.name, row);
  const text = score === undefined ? "" : score.toFixed(1);
  const name = element("span", { className: "name", textContent: column.name });
  if (isMissing(column, row)) {
    const placeholder = element("span", { className: "gone", textContent: "no image" });
    return element("span", { className: "thumb", title: fileOf(column, row) }, placeholder, name, text);
  }
  const image = element("img", { alt: `${column.name}: ${caption}` });
  if (!(row in column.thumbs)) image.loading = "lazy";
  image.src = thumbOf(column, row);
  image.addEventListener("error", () => { notHere(); image.replaceWith(element("span", { className: "gone", textContent: "not here", title: `${fileOf(column, row)} is in the run folder` })); });
  const button = element("button", { type: "button", className: "thumb", title: column.name }, image, name, text);
  button.dataset.row = row;
  button.dataset.column = column.name;
  button.addEventListener("click", () => openViewer(row, column.name));
  return button;
}

function tableRow(row) {
  const head = element("th", { scope: "row" }, captionOf(row));
  head.setAttribute("role", "rowheader");
  if (grid().baseline) head.append(element("small", { textContent: `${grid().name} ${signed(gainOf(row))}` }));
  const made = element("tr", {}, head);
  made.setAttribute("role", "row");
  for (const column of columns()) {
    const cell = element("td", { className: column.name === grid().ours ? "cca" : "" }, thumb(column, row));
    cell.setAttribute("role", "cell");
    made.append(cell);
  }
  return made;
}

function heading() {
  const names = columns().map((c) => element("th", { scope: "col", className: c.name === grid().ours ? "cca" : "", textContent: c.name }));
  return element("thead", {}, element("tr", {}, element("th", { scope: "col", textContent: "prompt" }), ...names));
}

const numPages = () => Math.max(1, Math.ceil(rows.length / DATA.rows));
function render() {
  state.page = Math.min(Math.max(0, state.page), numPages() - 1);
  const first = state.page * DATA.rows, last = Math.min(first + DATA.rows, rows.length);
  byId("grid").replaceChildren(heading(), element("tbody", {}, ...rows.slice(first, last).map(tableRow)));
  const total = grid().captions.length.toLocaleString("en");
  const against = grid().baseline ? ` The number under an image is its alignment; "${grid().name}" next to a prompt is the alignment of ${grid().ours} minus that of ${grid().baseline}.` : "";
  byId("status").textContent = rows.length ? `${rows.length.toLocaleString("en")} of ${total} prompts.${against}` : `No prompt has these words (${total} searched).`;
  byId("page").textContent = rows.length ? `${(first + 1).toLocaleString("en")} to ${last.toLocaleString("en")} of ${rows.length.toLocaleString("en")}` : "none";
  byId("pager").hidden = numPages() === 1;
  byId("first").disabled = byId("back").disabled = state.page === 0;
  byId("last").disabled = byId("more").disabled = state.page === numPages() - 1;
}

function restart() {
  state.page = 0;
  choose();
  render();
}

function turn(page) {
  state.page = page;
  render();
  byId("controls").scrollIntoView({ block: "nearest" });
}

function listColumns() {
  const boxes = grid().columns.map((column) => {
    const box = element("input", { type: "checkbox", checked: column.shown });
    box.addEventListener("change", () => { column.shown = box.checked; render(); });
    return element("label", {}, box, column.name);
  });
  byId("columns").replaceChildren(byId("columns").firstElementChild, ...boxes);
  const baseline = grid().baseline;
  for (const option of byId("order").options) {
    if (option.value === "original") continue;
    option.disabled = !baseline;
    option.textContent = `largest ${option.value}${baseline ? ` of ${grid().ours} over ${baseline}` : " (needs base and cca)"}`;
  }
  if (!baseline) byId("order").value = state.order = "original";
}

byId("split").addEventListener("change", () => { state.split = Number(byId("split").value); listColumns(); restart(); });
byId("search").addEventListener("input", () => { state.query = byId("search").value; restart(); });
byId("order").addEventListener("change", () => { state.order = byId("order").value; restart(); });
byId("controls").addEventListener("submit", (event) => event.preventDefault());
byId("first").addEventListener("click", () => turn(0));
byId("back").addEventListener("click", () => turn(state.page - 1));
byId("more").addEventListener("click", () => turn(state.page + 1));
byId("last").addEventListener("click", () => turn(numPages() - 1));
byId("controls").hidden = false;
listColumns();
restart();
