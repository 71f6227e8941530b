// Words of `after` that `before` hasn't, by a longest common subsequence; null where that
// would say nothing (hardly a word in common) or take too long.
function changedWords(before, after) {
  const a = before.split(/(\s+)/).filter((w) => w !== ""), b = after.split(/(\s+)/).filter((w) => w !== "");
  let start = 0, endA = a.length, endB = b.length;
  while (start < endA && start < endB && a[start] === b[start]) start++;
  while (endA > start && endB > start && a[endA - 1] === b[endB - 1]) { endA--; endB--; }
  const n = endA - start, m = endB - start;
  if (n * m > 400000) return null;
  const width = m + 1, table = new Uint32Array((n + 1) * width);
  for (let i = n - 1; i >= 0; i--) {
    for (let j = m - 1; j >= 0; j--) {
      table[i * width + j] = a[start + i] === b[start + j]
        ? table[(i + 1) * width + j + 1] + 1
        : Math.max(table[(i + 1) * width + j], table[i * width + j + 1]);
    }
  }
  const parts = [];
  const add = (kind, text) => {
    const last = parts[parts.length - 1];
    if (last && last[0] === kind) last[1] += text; else parts.push([kind, text]);
  };
  let common = 0;
  for (let k = 0; k < start; k++) { add("same", b[k]); common += b[k].trim() ? 1 : 0; }
  let i = 0, j = 0;
  while (i < n || j < m) {
    if (i < n && j < m && a[start + i] === b[start + j]) {
      add("same", b[start + j]);
      common += b[start + j].trim() ? 1 : 0;
      i++; j++;
    } else if (j < m && (i === n || table[i * width + j + 1] > table[(i + 1) * width + j])) add("ins", b[start + j++]);
    else add("del", a[start + i++]);
  }
  for (let k = endB; k < b.length; k++) { add("same", b[k]); common += b[k].trim() ? 1 : 0; }
  const words = Math.max(a.filter((w) => w.trim()).length, b.filter((w) => w.trim()).length);
  return words && common / words < 0.4 ? null : parts;
}

// Characters that nobody sees (terminal codes, text direction, zero width) are named.
const HIDDEN = /[\p{Cc}\p{Cf}\p{Cs}\u2028\u2029]/u;
function shown(text) {
  const pieces = document.createDocumentFragment();
  let run = "";
  for (const c of text) {
    if (c === "\n" || c === "\t" || !HIDDEN.test(c)) { run += c; continue; }
    if (run) pieces.append(run);
    run = "";
    pieces.append(make("span", { class: "ctl" }, "U+" + c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")));
  }
  if (run) pieces.append(run);
  return pieces;
}
const seen = (text) => String(text).replace(new RegExp(HIDDEN.source, "gu"), (c) =>
  (c === "\n" || c === "\t" ? c : "[U+" + c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0") + "]"));

function textBox(value, kind) {
  const box = make("div", { class: "text " + (kind || ""), tabindex: "0" });
  if (Array.isArray(value)) {
    box.append(shown(value[0]), make("span", { class: "cutmark" },
      `… ${whole(value[2])} characters are cut here; the whole text is in examples.parquet …`), shown(value[1]));
  } else box.append(shown(value));
  return box;
}

// `after` with its differences to `before` marked; plain where a diff says nothing.
function diffBox(before, after, kind) {
  if (before === null || after === null || flatText(before) === flatText(after)) return textBox(after, kind);
  if (Array.isArray(before) || Array.isArray(after)) return textBox(after, kind);
  const parts = changedWords(before, after);
  if (!parts) return textBox(after, kind);
  const box = make("div", { class: "text " + (kind || ""), tabindex: "0" });
  for (const [what, text] of parts) {
    if (what === "same") box.append(shown(text));
    else box.append(make(what, {}, shown(text)));
  }
  return box;
}
