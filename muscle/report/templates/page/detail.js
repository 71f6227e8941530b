function verdictOf(row, side) {
  const score = part(row, side, "score");
  if (score === null) return make("span", { class: "warn" }, "unscored");
  if (taskOf(row).continuous) return make("span", {}, number(taskOf(row).percent ? 100 * score : score, 2) + (taskOf(row).percent ? " %" : ""));
  return score ? make("span", { class: "right" }, "✓ right") : make("span", { class: "wrong" }, "✗ wrong");
}

function answerCard(row, side) {
  const hidden = facts.text === "none";
  const answer = textOf(row, part(row, side, "answer"));
  const old = textOf(row, part(row, "old", "answer"));
  const card = make("div", { class: "answer " + side },
    make("header", {}, make("span", { class: "v-" + side }, side === "again" ? "old, trained again" : side), verdictOf(row, side)));
  const reason = part(row, side, "reason");
  const error = part(row, side, "error"), cut = part(row, side, "truncated");
  if (answer !== null) card.append(side === "old" ? textBox(answer, "short") : diffBox(old, answer, "short"));
  else card.append(make("p", { class: "muted" }, hidden ? "text left out" : "no answer"));
  if (reason !== null) card.append(make("p", { class: "muted" }, "scorer: ", shown(flatText(reason))));
  if (error !== null) card.append(make("p", { class: "warn" }, "error: ", shown(flatText(error))));
  if (cut) card.append(make("p", { class: "warn" }, `did not fit and was cut: ${cut}`));
  if (part(row, side, "near_tie")) card.append(make("p", { class: "warn" }, "near tie: decided by less than numeric noise"));
  const prompt = part(row, side, "question");
  if (prompt !== null) card.append(folded("another prompt than old's", () => diffBox(row[AT.question], prompt)));
  const asked = part(row, side, "prompt");
  if (asked !== null) card.append(folded("the prompt in this version's template", () => textBox(asked)));
  const response = part(row, side, "response");
  if (response !== null) {
    card.append(folded("raw response", () => (side === "old" ? textBox(response) : diffBox(part(row, "old", "response"), response))));
  }
  return card;
}

// A disclosure whose content is made when it is first opened.
function folded(title, content) {
  const node = make("details", {}, make("summary", {}, title));
  node.addEventListener("toggle", () => { if (node.open && node.children.length === 1) node.append(content()); });
  return node;
}

function choiceTable(row) {
  const sides = data.sides.filter((side) => part(row, side, "loglikelihoods") !== null);
  if (!sides.length) return null;
  const rows = Math.max(...sides.map((side) => part(row, side, "loglikelihoods").length));
  const gold = row[AT.gold];
  const body = [];
  for (let k = 0; k < rows; k++) {
    const name = row[AT.choices] === null || k >= row[AT.choices].length ? "choice " + (k + 1) : seen(flatText(row[AT.choices][k]));
    const cells = sides.map((side) => {
      const value = part(row, side, "loglikelihoods")[k];
      const taken = part(row, side, "answer") === k;
      return make("td", { class: "n" }, make(taken ? "b" : "span", {}, number(value === undefined ? null : value, 3)), taken ? " ◀" : "");
    });
    body.push(make("tr", {}, make("th", { scope: "row" }, name, gold === k ? make("small", { class: "right" }, "✓ the right one") : null), ...cells));
  }
  return make("div", { class: "wide" }, make("table", {}, make("caption", {}, "Log-likelihoods in nats; ◀ is the answer given"),
    make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "choice"), ...sides.map((s) => make("th", { scope: "col", class: "n" }, s)))),
    make("tbody", {}, ...body)));
}

function badges(row) {
  const list = make("ul", { class: "badges" });
  data.pairs.forEach((pair, i) => {
    const outcome = outcomeOf(row, i);
    if (outcome === null) return;
    const kind = outcome === "negative" || outcome === "positive" ? " " + outcome : "";
    list.append(make("li", { class: "badge" + kind }, `${arrow(pair)}: ${word(outcome, taskOf(row).continuous)}`));
  });
  const change = { fixed: "flip fixed by compat", kept: "flip kept by compat", made: "flip newly made by compat" }[changeOf(row)];
  if (change) list.append(make("li", { class: "badge" }, change));
  for (const [task, id, reason, until] of facts.waived) {
    if (id === row[AT.id] && (!task || task === taskOf(row).name)) {
      list.append(make("li", { class: "badge" }, seen(`waived until ${until}: ${reason}`)));
    }
  }
  return list;
}

function fieldButtons(row) {
  if (!row[AT.fields].length) return null;
  return make("div", {}, make("h4", {}, "Slices"), make("div", { class: "badges" }, ...row[AT.fields].map(([f, v]) => {
    const [name, values] = data.fields[f];
    const text = seen(`${name} = ${values[v]}`);
    return make("button", { type: "button", class: "badge", title: "Show only these", click: () => browse({ pair: state.pair, field: name, value: values[v] }) },
      text.length > 80 ? text.slice(0, 79) + "…" : text);
  })));
}

function marginLine(row) {
  const task = taskOf(row), said = [];
  data.pairs.forEach((pair, i) => {
    const [before, after] = pair.split("->");
    if (before !== "old" || after === "again") return;
    const margin = marginOf(row, i);
    if (margin === null) return;
    if (task.continuous) {
      const change = part(row, after, "score") - part(row, before, "score");
      said.push(`${arrow(pair)} ${change > 0 ? "+" : ""}${number(task.percent ? 100 * change : change, task.percent ? 2 : 3)}`);
    } else if (margin > 0) said.push(`${after} prefers its answer to the right one by ${number(margin, 3)} nats`);
  });
  if (!said.length) return null;
  const title = task.continuous ? `Change of the score${task.percent ? ", points" : ""}: ` : "Margin: ";
  return make("p", { class: "muted" }, title + said.join("; ") + ".");
}

function showDetail(row) {
  const box = byId("detail");
  box.scrollTop = 0;
  if (!row) { box.replaceChildren(make("p", { class: "muted" }, "No example is chosen.")); return; }
  const parts = [
    make("button", { type: "button", class: "tool back", click: () => { byId("list").focus(); byId("list").scrollIntoView({ block: "start", behavior: "instant" }); } }, "↑ back to the list"),
    make("h3", {}, seen(row[AT.id])),
    make("p", { class: "muted" }, seen(taskOf(row).name) + (byId("browse").dataset.seeds > 1 ? `, seed ${row[AT.seed]}` : "")),
    badges(row),
  ];
  if (row[AT.question] !== null) parts.push(make("h4", {}, "Prompt"), textBox(row[AT.question]));
  const gold = textOf(row, row[AT.gold]);
  if (gold !== null) parts.push(make("h4", {}, "Right answer"), textBox(gold, "short"));
  parts.push(make("h4", {}, "Answers; words that differ from old's are marked"), make("div", { class: "answers" }, ...data.sides.map((side) => answerCard(row, side))));
  const choices = choiceTable(row);
  if (choices) parts.push(make("h4", {}, "Choices"), choices);
  parts.push(marginLine(row), fieldButtons(row));
  if (row[AT.document]) parts.push(make("p", { class: "muted" }, "document ", make("code", {}, seen(row[AT.document]))));
  box.replaceChildren(...parts.filter(Boolean));
}
