// One large image: left and right move along its prompt's arms (and to the next prompt), up and down
// to the same arm of another prompt.
const seen = { row: 0, column: "" };

function fill() {
  const { row, column: name } = seen;
  const column = grid().columns.find((c) => c.name === name);
  const image = byId("viewer-image");
  const hadFocus = byId("viewer-strip").contains(document.activeElement);
  const small = thumbOf(column, row);
  image.onerror = () => { image.onerror = null; image.src = small; };
  image.src = grid().exact ? small : fileOf(column, row);
  image.className = grid().exact ? "pixels" : "";
  image.alt = `${name}: ${captionOf(row)}`;
  byId("viewer-caption").textContent = captionOf(row);
  byId("viewer-arm").textContent = name === "real" ? "real image" : name;
  byId("viewer-scores").replaceChildren(...scoresOf(name, row).map(([term, value]) => element("div", {}, element("dt", { textContent: term }), element("dd", { textContent: value }))));
  byId("viewer-strip").replaceChildren(...columns().map((other) => smallOf(other, row)));
  if (hadFocus) byId("viewer-strip").querySelector("[aria-pressed=true]").focus();
  byId("viewer-place").textContent = `prompt ${(rows.indexOf(row) + 1).toLocaleString("en")} of ${rows.length.toLocaleString("en")}, image ${pad(grid().indices[row])}`;
}

// The same prompt's other arms, to jump to.
function smallOf(column, row) {
  const made = element("button", { type: "button", title: column.name, disabled: isMissing(column, row) });
  made.setAttribute("aria-pressed", String(column.name === seen.column));
  if (made.disabled) made.textContent = "–";
  else made.append(element("img", { src: thumbOf(column, row), alt: column.name, width: 48, height: 48 }));
  made.addEventListener("click", () => { seen.column = column.name; fill(); });
  return made;
}

function scoresOf(name, row) {
  const entries = [];
  const scores = grid().scores[name];
  if (scores) {
    entries.push(["alignment", scores.alignment[row].toFixed(1)]);
    entries.push(["captions that fit better", scores.rank[row].toLocaleString("en")]);
  }
  if (grid().baseline) entries.push([`${grid().ours} minus ${grid().baseline}`, signed(gainOf(row))]);
  return entries;
}

function step(across, down) {
  const names = columns().map((c) => c.name);
  let place = rows.indexOf(seen.row), at = names.indexOf(seen.column);
  // Missing images are skipped; at either end nothing moves.
  do {
    at += across;
    place += down + (at < 0 ? -1 : at >= names.length ? 1 : 0);
    at = (at + names.length) % names.length;
    if (place < 0 || place >= rows.length) return;
  } while (isMissing(columns()[at], rows[place]));
  Object.assign(seen, { row: rows[place], column: names[at] });
  fill();
}

function openViewer(row, column) {
  Object.assign(seen, { row, column });
  fill();
  byId("viewer").showModal();
}

const KEYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
byId("viewer").addEventListener("keydown", (event) => {
  if (!(event.key in KEYS)) return;
  event.preventDefault();
  step(...KEYS[event.key]);
});
byId("viewer-back").addEventListener("click", () => step(-1, 0));
byId("viewer-next").addEventListener("click", () => step(1, 0));
byId("viewer-close").addEventListener("click", () => byId("viewer").close());
byId("viewer").addEventListener("click", (event) => { if (event.target === byId("viewer")) byId("viewer").close(); });
byId("viewer").addEventListener("close", () => {
  // Focus returns to the image seen last, whichever page it is on.
  const page = Math.floor(rows.indexOf(seen.row) / DATA.rows);
  if (page !== state.page) { state.page = page; render(); }
  document.querySelector(`.thumb[data-row="${seen.row}"][data-column="${CSS.escape(seen.column)}"]`)?.focus();
});
