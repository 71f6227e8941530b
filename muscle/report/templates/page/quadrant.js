// The paper's Figure 2: what old and the later version got right, as four fields to click.
function field(kind, title, count, n, click) {
  return make("button", { type: "button", class: "q " + kind, "data-outcome": kind, click: data ? click : null, disabled: count === null },
    make("span", {}, title), make("b", {}, count === null ? "–" : whole(count)), make("i", {}, count === null ? "not known" : percent(count, n)));
}

function quadrants(box) {
  const number = Number(box.dataset.task), task = facts.tasks[number];
  const seeds = Object.keys(task.counts);
  let seed = seeds[0], pair = Object.keys(task.counts[seed])[0];
  if (facts.pair in task.counts[seed]) pair = facts.pair;
  const draw = () => {
    const counts = task.counts[seed][pair], [before, after] = pair.split("->");
    const go = (outcome) => () => browse({ task: task.name, seed: seeds.length > 1 ? seed : "", pair, outcome });
    const one = (outcome, title) => field(outcome, title, counts[outcome], task.n, go(outcome));
    const press = (list, current, text, set) => list.length < 2 ? [] : list.map((item) =>
      make("button", { type: "button", "aria-pressed": item === current ? "true" : "false", "data-choice": item, click: () => { set(item); draw(); box.querySelector(`[data-choice="${item}"]`).focus(); } }, text(item)));
    const parts = [
      make("div", { class: "switch", role: "group", "aria-label": "Pair of versions" }, ...press(Object.keys(task.counts[seed]), pair, arrow, (p) => { pair = p; })),
      seeds.length < 2 ? null : make("div", { class: "switch", role: "group", "aria-label": "Seed" }, "seed ", ...press(seeds, seed, (s) => s, (s) => { seed = s; })),
    ];
    if (task.continuous) {
      parts.push(make("div", { class: "quad three" }, one("negative", "▼ Worse"), one("equal", "= Equal"), one("positive", "▲ Better")));
    } else {
      const apart = counts.both_wrong_same !== null && counts.both_wrong_same !== undefined;
      const known = [counts.both_right, counts.negative, counts.positive];
      const wrong = known.includes(null) ? null : task.n - known.reduce((a, b) => a + b, 0);
      const both = apart
        ? make("div", { class: "half" }, one("both_wrong_same", "✗✗ Same answer"), one("both_wrong_different", "✗✗ Other answer"))
        : field("both_wrong", "✗✗ Both wrong", wrong, task.n, go("both_wrong"));
      parts.push(make("div", { class: "quad" },
        make("span", {}), make("span", { class: "axis" }, `${after} right`), make("span", { class: "axis" }, `${after} wrong`),
        make("span", { class: "axis side" }, `${before} right`), one("both_right", "✓✓ Both right"), one("negative", "▼ Negative flips"),
        make("span", { class: "axis side" }, `${before} wrong`), one("positive", "▲ Positive flips"), both));
    }
    parts.push(make("p", { class: "muted" }, data ? "A click shows these examples below." : ""));
    box.replaceChildren(...parts.filter(Boolean));
  };
  draw();
}

// Many tasks: a table, whose numbers are the same buttons.
function changeRows(box) {
  const several = new Set(data.changes.map((row) => row[1])).size > 1;
  const head = ["task", ...(several ? ["seed"] : []), "✓ fixed", "▼ kept", "▼ newly made"];
  const rows = data.changes.map(([task, seed, fixed, kept, made]) => {
    const cell = (change, title, n) => make("td", { class: "n", "data-sort": n }, make("button", { type: "button", class: "link", "data-change": change,
      "aria-label": `${title}, ${seen(task)}: ${n}`,
      click: () => browse({ task, seed: several ? String(seed) : "", pair: change === "made" ? "old->compat" : "old->new", change }) }, whole(n)));
    return make("tr", { "data-task": task }, make("th", { scope: "row" }, seen(task)), several ? make("td", { class: "n" }, seed) : null,
      cell("fixed", "fixed", fixed), cell("kept", "kept", kept), cell("made", "newly made", made));
  });
  const table = make("table", { class: "sortable" }, make("caption", { class: "sr" }, "Negative flips of new under compat"),
    make("thead", {}, make("tr", {}, ...head.map((text, i) => make("th", { scope: "col", class: i ? "n" : "" }, text)))), make("tbody", {}, ...rows));
  box.append(make("div", { class: "wide" }, table));
  sortable(table);
}

function changeTable(box) {
  if (data.changes.length > 8) { changeRows(box); return; }
  const cards = data.changes.map(([task, seed, fixed, kept, made, neither]) => {
    const seeds = new Set(data.changes.filter((row) => row[0] === task).map((row) => row[1])).size;
    const go = (change) => () => browse({ task, seed: seeds > 1 ? String(seed) : "", pair: change === "made" ? "old->compat" : "old->new", change });
    const one = (change, title, count) => make("button", { type: "button", class: "q " + change, "data-change": change, click: go(change) },
      make("span", {}, title), make("b", {}, whole(count)));
    const net = kept + made - fixed - kept;
    return make("div", { class: "fatecard", "data-task": task },
      make("h3", {}, seen(task) + (seeds > 1 ? `, seed ${seed}` : "")),
      make("div", { class: "fate" }, one("fixed", "✓ Fixed", fixed), one("kept", "▼ Kept", kept), one("made", "▼ Newly made", made)),
      make("p", { class: "muted" }, `New has ${whole(fixed + kept)} negative flips against old, compat ${whole(kept + made)}: ` +
        (net === 0 ? "as many." : `${whole(Math.abs(net))} ${net < 0 ? "fewer" : "more"}.`) + ` ${whole(neither)} examples flip under neither.`));
  });
  box.append(make("div", { class: "fates" }, ...cards));
}
