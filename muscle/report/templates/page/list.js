const form = document.querySelector(".filters");

function options(select, pairs) {
  select.replaceChildren(...pairs.map(([value, text]) => make("option", { value }, text)));
}

function fillForm() {
  const fields = form.elements;
  options(fields.task, [["", "all tasks"], ...facts.tasks.map((t) => [t.name, seen(t.name)])]);
  const seeds = [...new Set(data.totals.map((row) => row[1]))].sort((a, b) => a - b);
  options(fields.seed, [["", "all seeds"], ...seeds.map((s) => [s, "seed " + s])]);
  fields.seed.parentNode.hidden = seeds.length < 2;
  fields.task.parentNode.hidden = facts.tasks.length < 2;
  options(fields.pair, data.pairs.map((p) => [p, arrow(p)]));
  fields.change.parentNode.hidden = !data.pairs.includes("old->compat");
  options(fields.field, [["", "–"], ...data.fields.map(([name]) => [name, seen(name)])]);
  fields.field.parentNode.hidden = fields.value.parentNode.hidden = !data.fields.length;
  const some = facts.tasks.every((t) => t.continuous);
  const occurring = new Set(data.totals.map((row) => row[3]));
  const named = data.outcomes.filter((o) => occurring.has(o)).map((o) => [o, word(o, some)]);
  if (occurring.has("both_wrong_same") || occurring.has("both_wrong_different")) {
    if (!occurring.has("both_wrong")) named.push(["both_wrong", "both wrong, any answer"]);
  }
  options(fields.outcome, [["", "any"], ["flip", some ? "worse or better" : "any flip"], ...named]);
  const { shown } = data;
  byId("carried").textContent =
    (shown.flips === shown.all_flips ? `All ${whole(shown.flips)} flips of any pair` :
      `${whole(shown.flips)} of ${whole(shown.all_flips)} flips, chosen by a hash of their ids,`) +
    (shown.others === shown.all_others ? ` and all ${whole(shown.others)} other examples are in this page.` :
      ` and ${whole(shown.others)} of ${whole(shown.all_others)} other examples, chosen by a hash of their ids, are in this page. All are in examples.parquet.`);
}

function fillValues() {
  const field = data.fields.find(([name]) => name === state.field);
  const values = field ? [...field[1]].sort((a, b) => a.localeCompare(b, "en", { numeric: true })) : [];
  // A column of a thousand values is no list to choose from; the one chosen stays in it.
  const listed = values.slice(0, 500);
  if (state.value && !listed.includes(state.value)) listed.unshift(state.value);
  options(form.elements.value, [["", "any"], ...listed.map((v) => [v, seen(v)])]);
  form.elements.value.disabled = !field;
}

function showForm() {
  fillValues();
  for (const name of ["task", "seed", "pair", "outcome", "change", "field", "value", "ties", "cut", "sort", "q"]) {
    if (form.elements[name].value !== state[name]) form.elements[name].value = state[name];
  }
}

function mark(row) {
  const outcome = outcomeOf(row, pairNumber());
  const kind = outcome === "negative" || outcome === "positive" ? outcome : "";
  return make("span", { class: "what " + kind }, outcome ? word(outcome, taskOf(row).continuous) : "–");
}

function snippet(row) {
  const text = seen(flatText(row[AT.question])).replace(/\s+/g, " ").trim();
  return text.length > 90 ? "… " + text.slice(-90) : text;
}

function line(i, place) {
  const row = data.rows[i];
  const by = state.sort === "margin" ? `margin ${number(marginOf(row, pairNumber()), 2)}` : null;
  const where = facts.tasks.length > 1 && !state.task ? taskOf(row).name + " · " : "";
  return make("li", { role: "option", id: "row" + place, "data-at": place, "aria-selected": place === chosen ? "true" : "false" },
    make("span", { class: "id" }, seen(where + row[AT.id])), mark(row),
    by || row[AT.question] !== null ? make("span", { class: "snip" }, [by, row[AT.question] === null ? null : snippet(row)].filter(Boolean).join(" · ")) : null);
}

function showList() {
  const pages = Math.max(1, Math.ceil(found.length / PAGE));
  state.page = Math.min(state.page, pages - 1);
  const from = state.page * PAGE;
  const here = found.slice(from, from + PAGE);
  const list = byId("list");
  list.replaceChildren(...here.map((i, k) => line(i, from + k)));
  if (!here.length) list.append(make("li", { class: "empty", role: "presentation" }, "No example in this page fits the filter."));
  list.scrollTop = 0;
  byId("place").textContent = found.length ? `${whole(from + 1)}–${whole(from + here.length)} of ${whole(found.length)}` : "";
  byId("before").disabled = state.page === 0;
  byId("after").disabled = state.page >= pages - 1;
}

function showCount() {
  const all = total(), n = found.length;
  const noun = n === 1 ? "example" : "examples";
  byId("count").textContent = all === null || all === n
    ? `${whole(n)} ${noun}` + (all === null && data.shown.others < data.shown.all_others ? " among those in this page" : "")
    : `${whole(n)} of ${whole(all)} examples: the others are in examples.parquet, not in this page`;
}

function choose(place, keepAddress) {
  const before = byId("row" + chosen);
  if (before) before.setAttribute("aria-selected", "false");
  chosen = found.length ? Math.max(0, Math.min(place, found.length - 1)) : -1;
  if (chosen < 0) { byId("list").removeAttribute("aria-activedescendant"); showDetail(null); return; }
  const page = Math.floor(chosen / PAGE);
  if (page !== state.page) { state.page = page; showList(); }
  const node = byId("row" + chosen);
  node.setAttribute("aria-selected", "true");
  byId("list").setAttribute("aria-activedescendant", node.id);
  // Only the list scrolls: scrollIntoView would move the whole page, even while it opens.
  const list = byId("list"), above = node.offsetTop;
  if (above < list.scrollTop) list.scrollTop = above;
  else if (above + node.offsetHeight > list.scrollTop + list.clientHeight) list.scrollTop = above + node.offsetHeight - list.clientHeight;
  const row = data.rows[found[chosen]];
  Object.assign(state, { id: row[AT.id], of: ownerOf(row) });
  showDetail(row);
  if (!keepAddress) writeAddress();
}

// Filters anew; `changes` are settings. The chosen example stays if the address names it.
function update(changes, keepAddress) {
  Object.assign(state, changes);
  if (!data.pairs.includes(state.pair)) state.pair = data.pairs.includes(facts.pair) ? facts.pair : data.pairs[0];
  filter();
  const isIt = (row) => row[AT.id] === state.id && (state.of === "" || ownerOf(row) === state.of);
  const wanted = state.id ? found.findIndex((i) => isIt(data.rows[i])) : -1;
  chosen = -1;
  if (wanted >= 0) state.page = Math.floor(wanted / PAGE);
  showForm();
  showList();
  showCount();
  choose(wanted >= 0 ? wanted : state.page * PAGE, true);
  if (!keepAddress) writeAddress();
}

// What a click on a count elsewhere does: only that filter, and the reader goes there.
function browse(changes) {
  update({ ...BLANK, ...changes });
  byId("browser").scrollIntoView({ block: "start", behavior: "instant" });
  byId("list").focus({ preventScroll: true });
}

function move(key) {
  const steps = { j: 1, ArrowDown: 1, k: -1, ArrowUp: -1, PageDown: PAGE, PageUp: -PAGE };
  if (key in steps) choose(chosen + steps[key]);
  else if (key === "Home") choose(0);
  else if (key === "End") choose(found.length - 1);
  else if (key === "Enter") byId("detail").focus();
  else return false;
  return true;
}

function listen() {
  let timer = 0;
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", (event) => {
    const { name, value } = event.target;
    const changes = { [name]: value, page: 0, id: "" };
    if (name === "field") changes.value = "";
    clearTimeout(timer);
    if (name === "q") timer = setTimeout(() => update(changes), 150);
    else update(changes);
  });
  byId("reset").addEventListener("click", () => update({ ...BLANK, pair: state.pair }));
  byId("before").addEventListener("click", () => choose((state.page - 1) * PAGE));
  byId("after").addEventListener("click", () => choose((state.page + 1) * PAGE));
  byId("list").addEventListener("click", (event) => {
    const node = event.target.closest("li[data-at]");
    if (node) choose(Number(node.dataset.at));
  });
  byId("browser").addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select")) return;
    if (event.key === "/") { form.elements.q.focus(); event.preventDefault(); return; }
    const inList = event.target === byId("list");
    if ((inList || event.key === "j" || event.key === "k") && move(event.key)) event.preventDefault();
  });
  window.addEventListener("hashchange", () => { if (readAddress()) update({}, true); });
}
