"""docs/effect.md: the study's tables and plots, from its records; the words between them stay."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import record
from effect_cells import CELLS, MORE, SCREENED, counts_of, seeds_of, task_of, update_of
from effect_choice import Ranked, ranked
from effect_methods import CONTROLS, GROWTH, METHODS, RIVALS, candidates
from effect_plots import growth, scatter
from effect_records import Record
from effect_stats import Cell, Check, Value, above_router, aim, cell_of, flips_of, value_of

PAGE = record.ROOT / "docs" / "effect.md"
TABLES = ("run", "screen", "aim", "cells", "growth", "flips", "left-out")

Row = Sequence[str]


def write_page(
    work: Path, records: Sequence[Record], best: Sequence[str], page: Path = PAGE,
    results: Path = record.RESULTS,
) -> None:  # fmt: skip
    """Renew the page's tables, its plots and the result file."""
    cells = [cell for name in CELLS if (cell := judged(records, name)) is not None]
    for old in (page.parent / page.stem).glob("*.svg"):
        old.unlink()
    made = {
        "run": run_table(records, cells),
        "screen": screen_tables(records),
        "aim": aim_table(cells, best),
        "cells": "\n\n".join(cell_section(cell, best, page) for cell in cells) or "Nothing yet.",
        "growth": growth_section(records, page),
        "flips": flips_table(cells, best),
        "left-out": left_out(work, records, best),
    }
    text = page.read_text(encoding="utf-8") if page.is_file() else skeleton()
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(filled(text, made), encoding="utf-8")
    # No folder of this machine.
    command = record.command().replace(str(work), "WORK")
    found = {"command": command, **result(records, cells, best)}
    record.write_result("effect", found, results)


def judged(records: Sequence[Record], name: str) -> Cell | None:
    """A cell by its test split, or by tuning data where that wasn't read yet."""
    return cell_of(records, name, "test") or cell_of(records, name, "tuning")


def skeleton() -> str:
    """A page without words."""
    heads = {
        "run": "What was run",
        "screen": "The screening",
        "aim": "The aim",
        "cells": "Every cell",
        "growth": "How the effect grows",
        "flips": "What still flips",
        "left-out": "What was left out",
    }
    parts = [f"## {heads[t]}\n\n<!-- table {t} -->\n<!-- end -->\n" for t in TABLES]
    return "# What removes negative flips: a study\n\n" + "\n".join(parts)


def filled(page: str, made: dict[str, str]) -> str:
    """A page with its tables replaced."""
    for name, text in made.items():
        place = rf"<!-- table {name} -->\n.*?<!-- end -->"
        whole = f"<!-- table {name} -->\n{text}\n<!-- end -->"
        page, times = re.subn(place, lambda _, w=whole: w, page, flags=re.DOTALL)
        if times != 1:
            raise SystemExit(f"docs/effect.md has {times} places for table {name!r}")
    return page


def table(head: Row, rows: Iterable[Row]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


# --- numbers in words -----------------------------------------------------------------------


def percent(value: Value) -> str:
    return shown(value, 100, ".1f")


def points(value: Value) -> str:
    return shown(value, 100, "+.1f")


def shown(value: Value, times: float, form: str) -> str:
    """A value with its interval."""
    if value.value != value.value:
        return "–"
    text = format(times * value.value, form)
    if value.low is None or value.high is None:
        return text
    return f"{text} [{format(times * value.low, form)}, {format(times * value.high, form)}]"


def flips_name(cell: Cell) -> str:
    return "NFR" if cell.graded else "relative NFR"


def label(cell: Cell) -> str:
    return f"{task_of(cell.name)}, {update_of(cell.name)}"


def part_words(cell: Cell) -> str:
    return (
        "test split" if cell.part == "test" else "**tuning data; the test split wasn't read yet**"
    )


# --- tables ---------------------------------------------------------------------------------


def run_table(records: Sequence[Record], cells: Sequence[Cell]) -> str:
    """Each cell: examples, seeds, methods, what update it is."""
    rows = []
    for cell in cells:
        seeds = cell.seeds()
        old, new = (cell.rates(name, seeds) for name in ("old", "new"))
        rows.append([
            task_of(cell.name), update_of(cell.name), part_words(cell), f"{cell.n:,}",
            f"{len(seeds)} of {seeds_of(cell.name)}", str(len(cell.methods)),
            percent(value_of(old.score)), percent(value_of(new.score)),
            points(value_of(new.score - old.score)), percent(value_of(new.nfr)),
        ])  # fmt: skip
    head = ["task", "update", "judged by", "n", "seeds", "methods", "old", "new", "gain", "NFR"]
    seconds = sum(r["seconds"].get("all", 0.0) for r in records)
    return (
        table(head, rows)
        + f"\n\n{len(records)} records, {seconds / 3600:.1f} hours of one core each at a time. "
        "Scores and NFR in percent, gains in points, with 95 % intervals."
    )


def screen_tables(records: Sequence[Record]) -> str:
    """All methods on the screened cells' tuning data, first seed."""
    cells = [c for name in SCREENED if (c := cell_of(records, name, "tuning")) is not None]
    if not cells:
        return "Nothing yet."
    order = [row.method for row in ranked(records, [c.name for c in cells], list(METHODS))]
    chosen = {r.method: r for r in ranked(records, [c.name for c in cells], candidates())}
    rows = []
    for method in order:
        row = [METHODS[method].title]
        for cell in cells:
            if 0 not in cell.seeds(method):
                row += ["–"] * 3
                continue
            rates = cell.rates(method, [0])
            row += [f"{100 * rates.score[0]:.1f}", f"{100 * rates.nfr[0]:.1f}",
                    f"{rates.flips[0]:.2f}"]  # fmt: skip
        row.append(_ratio(chosen.get(method)))
        rows.append(row)
    head = ["method"]
    for cell in cells:
        head += [f"{label(cell)}: score", "NFR", flips_name(cell)]
    head.append("over new's")
    n = ", ".join(f"{label(cell)} {cell.n}" for cell in cells)
    return (
        table(head, rows)
        + f"\n\nTuning data, seed 0 (n: {n}). *Last column*: relative NFR over new's, the mean of "
        "the cells, of the methods that the best are chosen from; “loses”: more than 0.5 points "
        "below new on one of them; a star: it didn't run on all cells."
    )


def _ratio(row: Ranked | None) -> str:
    if row is None:
        return ""
    return (f"{row.ratio:.2f}" if row.allowed else "loses") + ("*" if row.missing else "")


def compared(cell: Cell, best: Sequence[str]) -> list[str]:
    """The methods that a cell's table and plot show: by group, as they stand in the table."""
    there = [m for m in METHODS if m in cell.methods and METHODS[m].group != "growth"]
    if cell.part == "tuning":
        return there
    shown_here = {*CONTROLS, *best}
    return [m for m in there if m in shown_here or len(cell.seeds(m)) > 1]


def cell_section(cell: Cell, best: Sequence[str], page: Path) -> str:
    """A cell's plot and table."""
    methods = compared(cell, best)
    name = f"{cell.name}.svg"
    title = f"{label(cell)}: n = {cell.n:,}, {len(cell.seeds())} seed(s)"
    scatter(cell, methods, page.parent / page.stem / name, title)
    rows = []
    for method in methods:
        seeds = cell.seeds(method)
        if not seeds:
            continue
        mine, new, old = (cell.rates(m, seeds) for m in (method, "new", "old"))
        router = above_router(mine, old, new)
        rows.append([
            METHODS[method].title, str(len(seeds)), percent(value_of(mine.score)),
            percent(value_of(mine.nfr)), shown(value_of(mine.flips), 1, ".2f"),
            points(value_of(mine.score - new.score)),
            shown(value_of(mine.flips - new.flips), 1, "+.2f"), points(value_of(router)),
        ])  # fmt: skip
    head = ["method", "seeds", "score", "NFR", flips_name(cell), "score − new's",
            f"{flips_name(cell)} − new's", "score above the router's"]  # fmt: skip
    return f"### {label(cell)} ({part_words(cell)})\n\n![{title}]({page.stem}/{name})\n\n" + table(
        head, rows
    )


def aim_table(cells: Sequence[Cell], best: Sequence[str]) -> str:
    """Each of the best methods on each cell against every condition of the issue's aim."""
    names = ["40 % below new", "half way to the floor", "score ≥ new − 0.5 points",
             "above the router"]  # fmt: skip
    rows = []
    for method in best:
        for cell in cells:
            if not cell.seeds(method):
                continue
            checks = {check.name: check for check in aim(cell, method, RIVALS)}
            rivals = [c for name, c in checks.items() if name not in names]
            row = [
                METHODS[method].title,
                label(cell) + ("" if cell.part == "test" else " (tuning)"),
            ]
            row += [_verdict(checks.get(name)) for name in names]
            lost = [c for c in rivals if c.state != "yes"]
            tally = f"{len(rivals) - len(lost)} of {len(rivals)}"
            if lost:
                tally += "; not " + ", ".join(
                    f"{c.name.removeprefix('fewer flips than ')} ({c.value.value:+.2f})"
                    for c in lost
                )
            row.append(tally)
            rows.append(row)
    if not rows:
        return "Nothing yet."
    return (
        table(["method", "cell", *names, "fewer flips than the controls"], rows)
        + "\n\n“Yes”: the whole interval is on the right side. “Not shown”: the estimate is. “No”: "
        "by how much it is missed (relative NFR, or points of score). Controls with one model: "
        + ", ".join(f"*{m}* ({METHODS[m].title})" for m in RIVALS)
        + "; in brackets relative NFR below theirs. “(tuning)”: judged by the examples that "
        "chose the method, which flatters it."
    )


def _verdict(check: Check | None) -> str:
    if check is None:
        return "–"
    if check.state != "no":
        return check.state
    score = "score" in check.name or "router" in check.name
    missed = -check.value.value
    return f"no, by {100 * missed:.1f} points" if score else f"no, by {missed:.2f}"


def _lines(cell: Cell, what: str) -> dict[str, list[tuple[float, Value, Value]]]:
    """Teacher -> (what is varied, flips, score), where there are two points or more."""
    lines = {}
    for teacher, points_ in GROWTH[what].items():
        there = [(x, cell.rates(m, [0])) for x, m in points_ if 0 in cell.seeds(m)]
        if len(there) > 1:
            lines[f"{teacher} teaches"] = [
                (x, value_of(rates.flips), value_of(100 * rates.score)) for x, rates in there
            ]
    return lines


def growth_section(records: Sequence[Record], page: Path) -> str:
    """Plots of what is varied, of the screened cells: by the part that has most of it, since the
    test may have been asked of the best methods only."""
    found = []
    for of in SCREENED:
        parts = [cell for part in ("test", "tuning") if (cell := cell_of(records, of, part))]
        for what in GROWTH:
            drawn = [(cell, _lines(cell, what)) for cell in parts]
            drawn = [(cell, lines) for cell, lines in drawn if lines]
            if not drawn:
                continue
            cell, lines = max(drawn, key=lambda one: sum(map(len, one[1].values())))
            words = {"inputs": "unlabelled inputs over labelled", "mix": "old's weight"}
            name = f"growth-{what}-{cell.name}.svg"
            title = f"{label(cell)}, seed 0"
            growth(lines, words.get(what, what), page.parent / page.stem / name, title)
            rows = [
                [line, f"{x:g}", shown(flips, 1, ".2f"), shown(score, 1, ".1f")]
                for line, values in lines.items()
                for x, flips, score in values
            ]
            found.append(
                f"![{what}, {title}]({page.stem}/{name})\n\n"
                + table(["teacher", words.get(what, what), flips_name(cell), "score"], rows)
                + f"\n\n{title}, {'test split' if cell.part == 'test' else 'tuning data'}."
            )
    return "\n\n".join(found) or "Nothing yet."


def flips_table(cells: Sequence[Cell], best: Sequence[str]) -> str:
    """Which of old's right answers are still lost: its lucky ones? how sure was each model?"""
    rows = []
    for cell in cells:
        for method in ("new", "ce", *best):
            found = flips_of(cell, method)
            if found is None:
                continue
            rows.append([
                label(cell), METHODS[method].title, str(found.count),
                _share(found.lucky), _share(found.lucky_all),
                *(f"{_share(found.sure.get(v))} ({_share(found.sure_all.get(v))})"
                  for v in ("old", "new", "method")),
            ])  # fmt: skip
    if not rows:
        return "Nothing yet."
    head = ["cell", "method", "flips", "old's second seed is wrong there", "of all old has right",
            "old's probability there (of all)", "new's", "the method's"]  # fmt: skip
    return table(head, rows) + (
        "\n\nAll seeds together. A flip on which old's second seed is wrong too was old's luck. "
        "Probabilities are of the answer that each model chose."
    )


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"


def left_out(work: Path, records: Sequence[Record], best: Sequence[str]) -> str:
    """What a whole study has and this one hasn't; what can't be done, and why."""
    said = []
    for name in CELLS:
        cell = judged(records, name)
        if cell is None:
            said.append(f"- {task_of(name)}, {update_of(name)}: not run.")
            continue
        if cell.part == "tuning":
            said.append(f"- {label(cell)}: judged by tuning data, the test split wasn't read.")
        wanted = [*CONTROLS, *best]
        if name in SCREENED:
            wanted = list(METHODS)
        impossible = {
            r["method"]: r["impossible"]
            for r in records
            if r["cell"] == name and r.get("impossible")
        }
        ran = {r["method"] for r in records if r["cell"] == name}
        absent = [m for m in wanted if m not in ran]
        if absent:
            said.append(f"- {label(cell)}: without {', '.join(absent)}.")
        fewer = len(cell.seeds())
        if fewer < seeds_of(name):
            said.append(f"- {label(cell)}: {fewer} of {seeds_of(name)} seeds.")
        reasons: dict[str, list[str]] = {}
        for method, reason in impossible.items():
            reasons.setdefault(reason, []).append(method)
        said += [f"- {label(cell)}: {', '.join(m)}: {why}" for why, m in reasons.items()]
        if cell.unscored:
            said.append(f"- {label(cell)}: {cell.unscored} examples without a score.")
        further = counts_of(work, task_of(name))["further"]
        if further < MORE[-1]:
            said.append(f"- {label(cell)}: there are only {further:,} further inputs.")
    return "\n".join(said) or "Nothing."


# --- results/effect.json --------------------------------------------------------------------


def result(records: Sequence[Record], cells: Sequence[Cell], best: Sequence[str]) -> dict[str, Any]:
    """All numbers of the page."""
    found: dict[str, Any] = {"what": "methods against negative flips", "best": list(best)}
    found["cells"] = {}
    for cell in cells:
        methods = {}
        for method in cell.methods:
            seeds = cell.seeds(method)
            if not seeds:
                continue
            mine, new = cell.rates(method, seeds), cell.rates("new", seeds)
            methods[method] = {
                "seeds": seeds,
                "score": list(value_of(mine.score)),
                "nfr": list(value_of(mine.nfr)),
                "flips": list(value_of(mine.flips)),
                "score_less_new": list(value_of(mine.score - new.score)),
                "flips_less_new": list(value_of(mine.flips - new.flips)),
                "aim": {c.name: [*c.value, c.state] for c in aim(cell, method, RIVALS)},
            }
        found["cells"][cell.name] = {"part": cell.part, "n": cell.n, "graded": cell.graded,
                                     "methods": methods}  # fmt: skip
    found["ranking"] = [row._asdict() for row in ranked(records, SCREENED, candidates())]
    found["seconds"] = {
        f"{r['cell']}/{r['seed']}/{r['method']}": r["seconds"].get("all") for r in records
    }
    return found
