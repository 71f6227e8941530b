document.querySelectorAll("table.sortable").forEach(sortable);
document.querySelectorAll(".quadrants").forEach(quadrants);
window.addEventListener("hashchange", openTarget);
openTarget();
if (data) {
  byId("browse").hidden = false;
  byId("browse").dataset.seeds = new Set(data.totals.map((row) => row[1])).size;
  document.querySelectorAll("table.slices").forEach(linkSlices);
  if (byId("change-table")) changeTable(byId("change-table"));
  fillForm();
  listen();
  if (readAddress()) { update({}, true); byId("browser").scrollIntoView({ behavior: "instant" }); }
  else update({ outcome: "negative" }, true);
  prepare(0);
} else {
  byId("no-examples").hidden = false;
}
document.documentElement.dataset.ready = "yes";
})();
