// What the browser shows: filters, order, page, chosen example. The address keeps it.
const PAGE = 50;
const BLANK = { task: "", seed: "", pair: "", outcome: "", change: "", field: "", value: "", ties: "", cut: "", sort: "id", q: "", page: 0, id: "", of: "" };
const state = { ...BLANK };
let found = [];
let chosen = -1;
const prepared = new Array(data ? data.rows.length : 0);

function searchable(i) {
  if (prepared[i] === undefined) {
    const row = data.rows[i];
    const texts = [row[AT.id], flatText(row[AT.question]), flatText(textOf(row, row[AT.gold]))];
    data.sides.forEach((side) => {
      texts.push(flatText(textOf(row, part(row, side, "answer"))), flatText(part(row, side, "response")));
    });
    prepared[i] = texts.join("\n").toLowerCase();
  }
  return prepared[i];
}

// Texts are made ready for searching while nothing else happens.
function prepare(start) {
  const later = window.requestIdleCallback || ((f) => setTimeout(() => f({ timeRemaining: () => 8 }), 20));
  later((deadline) => {
    let i = start;
    while (i < prepared.length && deadline.timeRemaining() > 2) searchable(i++);
    if (i < prepared.length) prepare(i);
  });
}

const pairNumber = () => Math.max(0, data.pairs.indexOf(state.pair));

function changeOf(row) {
  const compat = data.pairs.indexOf("old->compat");
  if (compat < 0) return null;
  const before = outcomeOf(row, data.pairs.indexOf("old->new")) === "negative";
  const after = outcomeOf(row, compat) === "negative";
  return before ? (after ? "kept" : "fixed") : after ? "made" : null;
}

// Whose example an id is: several tasks, or seeds, may have the same ids.
const ownerOf = (row) => (facts.tasks.length > 1 || byId("browse").dataset.seeds > 1 ? `${taskOf(row).name}/${row[AT.seed]}` : "");

const isTie = (row) => data.sides.some((side) => part(row, side, "near_tie"));
const isCut = (row) => data.sides.some((side) => part(row, side, "truncated"));

function passes(row, pair, field, value) {
  if (state.task !== "" && facts.tasks[row[AT.task]].name !== state.task) return false;
  if (state.seed !== "" && String(row[AT.seed]) !== state.seed) return false;
  if (state.outcome !== "") {
    const outcome = outcomeOf(row, pair);
    if (state.outcome === "flip" ? outcome !== "negative" && outcome !== "positive"
      : state.outcome === "both_wrong" ? !outcome || !outcome.startsWith("both_wrong") : outcome !== state.outcome) return false;
  }
  if (state.change !== "" && changeOf(row) !== state.change) return false;
  if (field >= 0 && state.value !== "" && !row[AT.fields].some(([f, v]) => f === field && v === value)) return false;
  if (state.ties !== "" && isTie(row) !== (state.ties === "only")) return false;
  if (state.cut !== "" && isCut(row) !== (state.cut === "only")) return false;
  return true;
}

function difference(row) {
  const [before, after] = data.pairs[pairNumber()].split("->");
  const a = part(row, before, "score"), b = part(row, after, "score");
  return a === null || b === null ? Infinity : b - a;
}

// How sure the later version of a pair is of its answer against the right one, in nats;
// how far a graded score moved. The table has it for old and new; for others it follows.
function marginOf(row, pair) {
  const [before, after] = data.pairs[pair].split("->");
  if (taskOf(row).continuous) {
    const a = part(row, before, "score"), b = part(row, after, "score");
    return a === null || b === null ? null : Math.abs(b - a);
  }
  if (data.pairs[pair] === "old->new" && row[AT.margin] !== null) return row[AT.margin];
  const likely = part(row, after, "loglikelihoods"), said = part(row, after, "answer"), gold = row[AT.gold];
  if (likely === null || typeof said !== "number" || typeof gold !== "number") return null;
  const gap = likely[said] - likely[gold];
  return likely[said] === null || likely[gold] === null || !Number.isFinite(gap) ? null : gap;
}

function filter() {
  const pair = pairNumber();
  const field = data.fields.findIndex(([name]) => name === state.field);
  const value = field < 0 ? -1 : data.fields[field][1].indexOf(state.value);
  const words = state.q.toLowerCase().split(/\s+/).filter((w) => w);
  found = [];
  for (let i = 0; i < data.rows.length; i++) {
    if (!passes(data.rows[i], pair, field, value)) continue;
    if (words.length) {
      const text = searchable(i);
      if (!words.every((w) => text.includes(w))) continue;
    }
    found.push(i);
  }
  if (state.sort === "margin") {
    const values = new Map(found.map((i) => [i, marginOf(data.rows[i], pair) ?? -1e300]));
    found.sort((i, j) => values.get(j) - values.get(i) || i - j);
  } else if (state.sort === "difference") {
    const values = new Map(found.map((i) => [i, difference(data.rows[i])]));
    found.sort((i, j) => (values.get(i) === values.get(j) ? i - j : values.get(i) - values.get(j)));
  }
}

// How many there are in examples.parquet, where the filter is one that was counted; else null.
function total() {
  if (state.q || state.ties || state.cut || (state.field && state.value)) return null;
  const here = (row) => (state.task === "" || row[0] === state.task) && (state.seed === "" || String(row[1]) === state.seed);
  if (state.change) {
    if (state.outcome) return null;
    const column = { fixed: 2, kept: 3, made: 4 }[state.change];
    return data.changes.filter(here).reduce((sum, row) => sum + row[column], 0);
  }
  return data.totals.filter((row) => here(row) && row[2] === data.pairs[pairNumber()]
    && (state.outcome === "" || row[3] === state.outcome
      || (state.outcome === "flip" && (row[3] === "negative" || row[3] === "positive"))
      || (state.outcome === "both_wrong" && row[3].startsWith("both_wrong"))))
    .reduce((sum, row) => sum + row[4], 0);
}

function readAddress() {
  if (!location.hash.startsWith("#browser?")) return false;
  const given = new URLSearchParams(location.hash.slice("#browser?".length));
  Object.assign(state, BLANK);
  for (const name of Object.keys(BLANK)) if (given.has(name)) state[name] = given.get(name);
  state.page = Math.max(0, parseInt(state.page, 10) || 0);
  return true;
}

function writeAddress() {
  const kept = new URLSearchParams();
  for (const [name, value] of Object.entries(state)) if (value !== BLANK[name]) kept.set(name, value);
  try { history.replaceState(null, "", "#browser?" + kept); } catch { /* a viewer without addresses */ }
}
