// The fleet page: sort by a head, show some decisions, find a name.
document.querySelectorAll("table.sortable").forEach(sortable);
const sieve = byId("sieve");
const adapters = [...byId("fleet").tBodies[0].rows];

function sift() {
  const decision = sieve.elements.decision.value;
  const words = sieve.elements.q.value.toLowerCase().split(/\s+/).filter((w) => w);
  let shown = 0;
  for (const row of adapters) {
    const text = (row.cells[0].textContent + " " + row.cells[1].textContent).toLowerCase();
    row.hidden = (decision !== "" && row.dataset.decision !== decision) || !words.every((w) => text.includes(w));
    if (!row.hidden) shown += 1;
  }
  byId("shown").textContent = `${whole(shown)} of ${whole(adapters.length)} adapters`;
}

sieve.hidden = false;
sieve.addEventListener("input", sift);
sieve.addEventListener("submit", (event) => event.preventDefault());
sift();
document.documentElement.dataset.ready = "yes";
})();
