"use strict";
// Tooltips of the plots' points, on hover and on focus.
(() => {
  const tip = document.getElementById("tip");
  let shown = null;
  const hide = () => { shown = null; tip.hidden = true; };
  const place = () => {
    if (!shown) return;
    const mark = shown.getBoundingClientRect(), box = tip.getBoundingClientRect();
    const left = Math.min(mark.left + mark.width / 2 - box.width / 2, innerWidth - box.width - 8);
    const above = mark.top - box.height - 8;
    tip.style.left = `${Math.max(8, left)}px`;
    tip.style.top = `${above > 4 ? above : mark.bottom + 8}px`;
  };
  const show = (point) => {
    shown = point;
    tip.textContent = point.getAttribute("aria-label");
    tip.hidden = false;
    place();
  };
  for (const point of document.querySelectorAll(".point")) {
    point.querySelector("title").remove(); // or the browser shows a second tooltip
    point.addEventListener("pointerenter", () => show(point));
    point.addEventListener("focus", () => show(point));
    point.addEventListener("pointerleave", hide);
    point.addEventListener("blur", hide);
  }
  addEventListener("scroll", place, { passive: true });
  addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
})();
