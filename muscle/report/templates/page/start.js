"use strict";
(() => {
const facts = JSON.parse(document.getElementById("facts").textContent);
const data = JSON.parse(document.getElementById("examples").textContent);
const byId = (id) => document.getElementById(id);

// The only way in which text gets onto the page: as text. No string is ever read as markup.
function make(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === false || value === null || value === undefined) continue;
    if (name === "click") node.addEventListener("click", value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

const arrow = (pair) => pair.replace("->", "→");
const whole = (n) => n.toLocaleString("en-US");
const MINUS = "−";

function number(value, digits) {
  if (value === null || value === undefined) return "–";
  const text = Math.abs(value).toFixed(digits);
  return (value < 0 && Number(text) !== 0 ? MINUS : "") + text;
}

const percent = (part, all) => (all ? (100 * part / all).toFixed(2) + " %" : "–");

const WORDS = {
  both_right: "both right", negative: "▼ negative flip", positive: "▲ positive flip",
  both_wrong_same: "both wrong, same answer", both_wrong_different: "both wrong, other answer",
  both_wrong: "both wrong", equal: "equal", unscored: "unscored",
};
const GRADED = { negative: "▼ worse", positive: "▲ better" };
const word = (outcome, continuous) => (continuous && GRADED[outcome]) || WORDS[outcome];

// Positions in a row and in a version's part of it, by name.
const AT = {}, OF = {};
if (data) {
  data.row.forEach((name, i) => { AT[name] = i; });
  data.of_side.forEach((name, i) => { OF[name] = i; });
}
const taskOf = (row) => facts.tasks[row[AT.task]];
const part = (row, side, name) => {
  const value = row[AT.sides][data.sides.indexOf(side)][OF[name]];
  return value === undefined ? null : value;
};
// An answer that is one of the choices stands as that choice's number.
function textOf(row, value) {
  return typeof value === "number" ? row[AT.choices][value] : value;
}
// A long text is [beginning, end, characters left out between].
const flatText = (value) => (Array.isArray(value) ? value[0] + " … " + value[1] : value === null ? "" : value);
const outcomeOf = (row, pair) => {
  const code = row[AT.outcomes][pair];
  return code < 0 ? null : data.outcomes[code];
};
