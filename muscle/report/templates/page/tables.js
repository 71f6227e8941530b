// Tables that sort by a click on a head; cells may name their number in data-sort.
function sortable(table) {
  const heads = [...table.tHead.rows[0].cells];
  const rows = [...table.tBodies[0].rows];
  heads.forEach((head, column) => {
    const button = make("button", { type: "button" }, ...head.childNodes);
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const falling = head.getAttribute("aria-sort") === "descending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", falling ? "ascending" : "descending");
      const key = (row) => {
        const cell = row.cells[column];
        return cell.dataset.sort === undefined ? null : Number(cell.dataset.sort);
      };
      const compare = (a, b) => {
        const x = key(a), y = key(b);
        if (x === null && y === null) return a.cells[column].textContent.localeCompare(b.cells[column].textContent, "en", { numeric: true }) * (falling ? 1 : -1);
        if (x === null || y === null) return x === null ? 1 : -1;
        return falling ? x - y : y - x;
      };
      table.tBodies[0].append(...[...rows].sort(compare));
    });
  });
}

// Slices that the examples' own columns name can be opened in the browser.
function linkSlices(table) {
  const task = facts.tasks[Number(table.dataset.task)];
  for (const head of table.querySelectorAll("tbody th[data-column]")) {
    const { column, value } = head.dataset;
    const field = data.fields.find(([name]) => name === column);
    if (!field || !field[1].includes(value)) continue;
    head.querySelector(".value").replaceChildren(make("button", { type: "button", class: "link",
      "aria-label": `Show the negative flips of ${seen(column)} = ${seen(value)}`,
      click: () => browse({ task: task.name, pair: "old->new", outcome: "negative", field: column, value }) }, seen(value)));
  }
}

function openTarget() {
  const name = location.hash.slice(1);
  const target = name && !name.includes("?") ? byId(name) : null;
  if (target instanceof HTMLDetailsElement) { target.open = true; target.scrollIntoView({ behavior: "instant" }); }
}
