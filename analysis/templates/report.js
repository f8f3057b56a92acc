for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const headers = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
  headers.forEach((header, column) => header.querySelector("button").addEventListener("click", () => {
    const descending = header.getAttribute("aria-sort") === "ascending";
    const key = (row) => row.cells[column].dataset.sort;
    const compare = (left, right) => {
      const [a, b] = [key(left), key(right)];
      if (a === undefined || b === undefined) return (a === undefined) - (b === undefined);
      const order = isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b;
      return descending ? -order : order;
    };
    headers.forEach((other) => other.removeAttribute("aria-sort"));
    header.setAttribute("aria-sort", descending ? "descending" : "ascending");
    body.append(...[...body.rows].sort(compare));
  }));
}

const hint = document.body.appendChild(document.createElement("div"));
hint.className = "hint";
hint.hidden = true;
document.addEventListener("pointerover", (event) => {
  const mark = event.target.closest("[data-hint]");
  hint.hidden = !mark;
  if (!mark) return;
  hint.textContent = mark.dataset.hint;
  const room = document.documentElement.clientWidth - hint.offsetWidth - 8;
  hint.style.left = `${Math.max(8, Math.min(event.pageX + 12, room))}px`;
  hint.style.top = `${event.pageY - hint.offsetHeight - 12}px`;
});

addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
});
