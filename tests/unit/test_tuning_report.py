"""A search's result: its order and front, tune.json, its tables and its picture."""

import html
import io
import json
import re
from dataclasses import replace
from itertools import product
from types import MappingProxyType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from muscle.report import tuning_view as view
from muscle.report.front import front_line, front_png
from muscle.report.tuning import found_to_json, print_found, write_tables
from muscle.tuning.ranking import feasible, front_of, rank
from muscle.tuning.records import Candidate, Contender, Found, Measured, Trial

EPSILON = 0.005
NEW = 0.70
WILD = "a|b `c` <script>\n[bold]x[/bold] \x1b[31m *d* $e$ www.x.org"


def measured(nfr, gain, n=400, p=0.0321, unscored=0):
    intervals = {
        "nfr": (nfr - 0.021, nfr + 0.022),
        "score": (NEW + gain - 0.03, NEW + gain + 0.03),
        "gain": (gain - 0.0151, gain + 0.0162),
        "reduction": (nfr - 0.1 - 0.0171, nfr - 0.1 + 0.0182),
    }
    return Measured(n, unscored, nfr, 0.1, NEW + gain, gain, intervals, p)


def trial(number, nfr=None, gain=None, state="finished", **more):
    a = None if nfr is None else measured(nfr, gain)
    params = {"mask": "student-wrong", "temperature": 2.0, "ce_weight": 0.125 * number}
    return Trial(number, params, state, a=a, seconds={"training": 12.5}, **more)


TRIALS = (
    trial(0, 0.0912, 0.0011),
    trial(1, 0.0534, -0.0261),
    trial(2, state="failed", reason="out of memory"),
    trial(3, 0.0623, -0.0012),
    trial(4, 0.0801, -0.03, state="stopped", reason="hopeless"),
    trial(5, state="diverged", reason="loss is nan"),
    trial(6, 0.0745, 0.0102),
    trial(7, 0.0612, -0.0091),
)


def found(trials=TRIALS, **changes):
    best = [t for t in rank(trials, EPSILON) if feasible(t, EPSILON)]
    candidates = tuple(
        Candidate(t.number, w, 0.0 if w == 1 else 0.01, measured(t.a.nfr + (1 - w) / 50, 0.0), b)
        for t in best[:2]
        for w, b in ((1.0, measured(0.0701, 0.0021, 398)), (0.5, None))
    )
    chosen = candidates[0] if candidates else None
    test = (
        Contender("chosen", {"mask": "student-wrong"}, measured(0.0702, 0.0031, 1000)),
        Contender(
            "default",
            {"mask": "student-wrong", "temperature": 2.0},
            measured(0.0834, 0.0042, 1000, 0.0004),
            {"nfr": 0.0132, "ci95": (0.0015, 0.0251), "p": 0.02},
        ),
        Contender(
            "always-old",
            {"mask": "always-old"},
            measured(0.0511, -0.0412, 998, None, 2),
            {"nfr": -0.0191, "ci95": None, "p": None},
        ),
    )
    whole = Found(
        name="demo", epsilon=EPSILON, pareto=False, n_a=400, n_b=398, smallest_difference=0.0481,
        continuous=False,
        space={"temperature": [1.0, 2.0], "mask": ["student-wrong"], "epochs": None},
        trials=tuple(trials), candidates=candidates, chosen=chosen, closest=None,
        why="Trial 3 has the fewest flips of 2 finalists.", test=test if chosen else (),
        front=front_of(trials), importances={"mask": 0.25, "temperature": 0.75},
        seconds={"total": 60.0}, provenance={"seed": 0},
    )  # fmt: skip
    return replace(whole, **changes)


def nothing_feasible(**changes):
    trials = tuple(t for t in TRIALS if not feasible(t, EPSILON))
    closest = Candidate(7, 1.0, 0.0, trials[-1].a)
    return found(trials, **{"closest": closest, "why": "No trial is feasible.", **changes})


def console_text(result, width=200):
    out = io.StringIO()
    print_found(result, Console(file=out, width=width, color_system=None))
    return out.getvalue()


def unescaped(cell):
    return html.unescape(re.sub(r"\\(.)", r"\1", cell.strip()))


def markdown_tables(page):
    """Title -> rows of cells, the header first, read as Markdown reads them."""
    tables, title = {}, None
    for line in page.split("\n"):
        if line.startswith("## "):
            title = unescaped(line[3:])
        elif line.startswith("|") and not line.startswith("|---"):
            cells = re.split(r"(?<!\\)\|", line)[1:-1]
            tables.setdefault(title, []).append([unescaped(c) for c in cells])
    return tables


def table(page, start):
    return next(rows for title, rows in markdown_tables(page).items() if title.startswith(start))


def numbers(cell):
    """The numbers of a cell: value, then bounds."""
    return [float(x) for x in re.findall(r"[-+]?\d+(?:\.\d+)?", cell.replace("−", "-"))]


# --- order and front ---

values = st.integers(0, 6).map(lambda i: i / 100)
drawn_trials = st.lists(
    st.tuples(values, values, st.sampled_from(["finished"] * 4 + ["stopped", "failed"])),
    max_size=9,
).map(
    lambda rows: [
        trial(i, nfr, gain - 0.03, state=s) if s != "failed" else trial(i, state=s)
        for i, (nfr, gain, s) in enumerate(rows)
    ]
)


def better(one, other):
    """The rule in words, pair by pair."""
    if feasible(one, EPSILON) != feasible(other, EPSILON):
        return bool(feasible(one, EPSILON))
    if feasible(one, EPSILON):
        key = [(t.a.nfr, -t.a.score, t.number) for t in (one, other)]
    else:
        key = [(-t.a.gain - EPSILON, t.a.nfr, t.number) for t in (one, other)]
    return key[0] < key[1]


@given(drawn_trials, st.randoms())
@settings(deadline=None)
def test_rank_orders_every_pair(trials, random):
    shuffled = random.sample(trials, len(trials))
    ranked = rank(shuffled, EPSILON)
    assert sorted(t.number for t in ranked) == [t.number for t in trials]
    done = [t for t in ranked if t.state == "finished"]
    assert ranked[: len(done)] == done, "only a finished trial was measured on the whole half"
    for i, one in enumerate(done):
        assert all(better(one, other) for other in done[i + 1 :])


@given(drawn_trials, st.randoms())
@settings(deadline=None)
def test_front_is_what_nothing_dominates(trials, random):
    done = [t for t in trials if t.state == "finished"]
    undominated = {
        (t.a.nfr, t.a.score)
        for t in done
        if not any(
            o.a.nfr <= t.a.nfr
            and o.a.score >= t.a.score
            and (o.a.nfr, o.a.score) != (t.a.nfr, t.a.score)
            for o in done
        )
    }
    first = {point: min(t.number for t in done if (t.a.nfr, t.a.score) == point)
             for point in undominated}  # fmt: skip
    front = front_of(random.sample(trials, len(trials)))
    assert sorted(front) == sorted(first.values())
    assert [trials[n].a.nfr for n in front] == sorted(trials[n].a.nfr for n in front)


def test_a_score_at_the_bound_is_feasible():
    assert feasible(trial(0, 0.05, -EPSILON), EPSILON) is True
    assert feasible(trial(0, 0.05, -EPSILON - 1e-6), EPSILON) is False
    assert feasible(TRIALS[4], EPSILON) is None
    assert feasible(TRIALS[2], EPSILON) is None


def test_the_others_come_last():
    assert [t.number for t in rank(TRIALS, EPSILON)] == [3, 6, 0, 7, 1, 4, 5, 2]


# --- tune.json ---


def test_json_reads_back_to_the_records():
    result = found()
    value = found_to_json(result)
    again = json.loads(json.dumps(value, allow_nan=False))
    assert again == value and value["schema"] == "muscle.tune/1"
    for shown, of in zip(again["trials"], result.trials, strict=True):
        assert shown.pop("feasible") == feasible(of, EPSILON)
        if of.a is not None:
            assert shown["a"].pop("new_score") == of.a.new_score
            assert shown["a"].pop("reduction") == of.a.nfr - of.a.nfr_new
        assert Trial.from_json(shown) == of
    assert [c["name"] for c in again["candidates"]] == [c.name for c in result.candidates]
    assert again["chosen"] == again["candidates"][0] and again["closest"] is None
    assert again["settings"] == {"epsilon": EPSILON, "pareto": False, "space": dict(result.space)}
    assert again["front"] == list(result.front) and again["importances"] == result.importances
    assert again["test"][1]["difference"]["ci95"] == [0.0015, 0.0251]
    assert again["seconds"] == {"total": 60.0} and again["provenance"] == {"seed": 0}


def test_json_sets_promise_and_delivery_side_by_side():
    result = found()
    promised = found_to_json(result)["promised"]
    of = {"a": result.chosen.a, "b": result.chosen.b, "test": result.test[0].test}
    assert set(promised) == set(of)
    for part, m in of.items():
        shown = promised[part]
        assert (shown["nfr"], shown["gain"], shown["n"]) == (m.nfr, m.gain, m.n)
        assert shown["ci95"]["nfr"] == list(m.ci95["nfr"])
    unmeasured = found(chosen=replace(result.chosen, b=None), test=())
    assert found_to_json(unmeasured)["promised"]["b"] is None
    assert found_to_json(unmeasured)["promised"]["test"] is None


def test_json_has_null_for_what_is_unknown():
    value = found_to_json(
        nothing_feasible(
            importances=None,
            space=MappingProxyType({"temperature": (1.0, 2.0)}),
            seconds={"total": float("nan")},
        )
    )
    json.dumps(value, allow_nan=False)
    assert value["promised"] is None and value["chosen"] is None and value["importances"] is None
    assert value["closest"]["name"] == "trial 7"
    assert value["seconds"] == {"total": None}
    assert value["settings"]["space"] == {"temperature": [1.0, 2.0]}


# --- tables ---


def test_trials_show_their_records():
    header, *rows = table(write_tables(found()), "Trials")
    # The space's order; what no trial has is no column.
    assert header[:4] == ["trial", "temperature", "mask", "ce_weight"]
    assert [int(row[0]) for row in rows] == [t.number for t in rank(TRIALS, EPSILON)]
    for row in rows:
        of = TRIALS[int(row[0])]
        cells = dict(zip(header, row, strict=True))
        assert float(cells["temperature"]) == 2.0
        assert float(cells["ce_weight"]) == pytest.approx(of.params["ce_weight"], rel=1e-3)
        assert cells["state"].startswith(of.state)
        if of.reason is not None:
            assert of.reason in cells["state"]
        if of.a is None:
            assert cells["NFR %"] == "–"
            continue
        assert numbers(cells["NFR %"]) == [pytest.approx(100 * of.a.nfr)]
        assert numbers(cells["ΔNFR points"]) == [pytest.approx(100 * of.a.nfr - 10)]
        assert numbers(cells["Δaccuracy points"]) == [pytest.approx(100 * of.a.gain)]
        assert cells["Δaccuracy points"].endswith("*") == (of.a.gain < -EPSILON)
    assert "at n = 400" in next(row for row in rows if row[0] == "4")[-1]


def test_promise_and_test_show_their_records():
    result = found()
    page = write_tables(result)
    header, nfr, reduction, gain, n = table(page, "Promised on A")
    assert header[1:] == ["promised on A", "kept on B", "delivered on test"]
    for i, m in enumerate((result.chosen.a, result.chosen.b, result.test[0].test), start=1):
        assert numbers(nfr[i])[0] == pytest.approx(100 * m.nfr)
        assert numbers(nfr[i])[1:] == pytest.approx([100 * b for b in m.ci95["nfr"]], abs=0.051)
        assert numbers(reduction[i]) == pytest.approx(
            [100 * (m.nfr - m.nfr_new), *(100 * b for b in m.ci95["reduction"])]
        )
        assert numbers(gain[i]) == pytest.approx([100 * m.gain, *(100 * b for b in m.ci95["gain"])])
        assert int(n[i]) == m.n
    _, new, chosen, default, old = table(page, "On the test split, n = 998 to 1000")
    assert "up to 2 unscored" in page
    assert [row[0] for row in (new, chosen, default, old)] == [
        "new", "chosen", "paper's default", "always-old",
    ]  # fmt: skip
    assert numbers(new[1]) == [10.0] and numbers(new[2]) == [70.0] and new[3] == new[4] == "–"
    # New less chosen is the chosen one's own reduction, turned round.
    low, high = result.test[0].test.ci95["reduction"]
    assert numbers(new[5]) == pytest.approx([10 - 7.02, -100 * high, -100 * low])
    assert numbers(chosen[2]) == [70.31] and chosen[4] == "0.032" and chosen[5] == "–"
    assert default[4] == "< 0.001" and numbers(default[5]) == [1.32, 0.15, 2.51]
    assert old[3].startswith("−4.12 *") and old[4] == "–" and numbers(old[5]) == [-1.91]


def test_candidates_name_the_chosen_one():
    result = found()
    _, *rows = table(write_tables(result), "Candidates")
    assert [row[0] for row in rows] == [
        "trial 3 (chosen)", "trial 3 x 0.5", "trial 6", "trial 6 x 0.5",
    ]  # fmt: skip
    assert numbers(rows[0][3]) == [7.01] and rows[1][3:] == ["–", "–"]
    for row, c in zip(rows, result.candidates, strict=True):
        assert numbers(row[1]) == [pytest.approx(100 * c.a.nfr)]


@pytest.mark.parametrize("width", [60, 80, 200])
def test_console_shows_the_same(width):
    shown = console_text(found(), width)
    for text in ("6.23", "−3.77", "memory", "7.02", "[4.9, 9.2]", "mask 25 %", "10.00"):
        assert " ".join(text.split()) in " ".join(shown.split()), text
    assert shown.index("temperature 75 %") < shown.index("mask 25 %")
    assert shown.rstrip().endswith("Trial 3 has the fewest flips of 2 finalists.")
    assert max(map(len, shown.split("\n"))) <= width


def test_numbers_stay_whole_at_80_columns():
    names = ("mask", "temperature", "ce_weight", "old_weight", "learning_rate", "epochs")
    wide = [replace(t, params={**dict.fromkeys(names, 0.00012345)}) for t in TRIALS]
    shown = console_text(found(wide), 80)
    for t in wide:
        if t.a is not None:
            assert f"{100 * t.a.nfr:.2f}" in shown
    assert "learning_rate" in shown and "[−4.69, −1.16]" in shown


@pytest.mark.parametrize("width", range(40, 130, 10))
def test_no_digit_is_cut_off(width):
    digits = re.compile(r"\d")
    counts = [len(digits.findall(console_text(found(), w))) for w in (300, width)]
    assert counts[0] == counts[1]


def test_console_is_ascii_where_there_is_no_more():
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii")
    print_found(found(name="é"), Console(file=out, width=100))
    out.flush()
    assert b"dNFR points" in raw.getvalue() and b"-3.77" in raw.getvalue()


def test_only_the_first_trials_are_printed():
    many = [trial(i, 0.05 + i / 1000, 0.0) for i in range(20)]
    assert "... and 5 more in tune.json" in console_text(found(many))
    assert "more in tune.json" not in console_text(found(many[:15]))
    _, *rows = table(write_tables(found(many)), "Trials")
    assert len(rows) == 20


def test_no_feasible_trial():
    result = nothing_feasible()
    # Trial 7 is 0.91 points below new's and 0.50 are allowed.
    for text in (" ".join(console_text(result).split()), unescaped(write_tables(result))):
        assert "No feasible trial" in text and "Closest is trial 7" in text
        assert "0.41 points" in text and "No trial is feasible." in text
        assert "Promised" not in text and "On the test split" not in text


def test_who_is_feasible_on_a_may_miss_on_b():
    a, b = measured(0.05, 0.0), measured(0.05, -0.0125)
    said = view.missed(nothing_feasible(closest=Candidate(7, 1.0, 0.0, a, b)))
    assert "half B" in said and "0.75 points" in said


@pytest.mark.parametrize("trials", [(), (TRIALS[2], TRIALS[4], TRIALS[5])])
def test_nothing_finished(trials):
    result = found(trials, importances=None, why="No trial finished.")
    assert "No feasible trial" in console_text(result)
    assert "too few trials" in write_tables(result)
    json.dumps(found_to_json(result), allow_nan=False)


def test_a_continuous_metric_has_no_accuracy():
    result = found(continuous=True)
    for text in (console_text(result), write_tables(result), view.missed(nothing_feasible(
        continuous=True
    ))):  # fmt: skip
        assert "accuracy" not in text
    assert "70.31" in console_text(result) and "Δscore points" in write_tables(result)


def test_unknown_intervals_leave_the_value_alone():
    bare = replace(measured(0.07, 0.001), ci95=dict.fromkeys(("nfr", "score", "gain", "reduction")))
    chosen = Candidate(3, 1.0, 0.0, bare, bare)
    result = found(chosen=chosen, test=(Contender("chosen", {}, bare),))
    assert "[" not in "".join(c for row in view.promised(result).rows for c in row.cells)
    assert [row.cells[-1] for row in view.test(result).rows] == ["+3.00", "–"]


def test_foreign_text_stays_text():
    hostile = replace(TRIALS[2], reason=WILD, params={"mask": WILD, WILD: 1.0})
    result = found(
        (*TRIALS[:2], hostile, *TRIALS[3:]),
        name=WILD,
        why=WILD,
        importances={WILD: 1.0},
        provenance={WILD: WILD},
        test=(*found().test, Contender(WILD, {WILD: WILD}, measured(0.05, 0.0))),
    )
    page = write_tables(result)
    assert "<script" not in page and "\x1b" not in page and "\\[bold\\]" in page
    assert "$e$" not in page and not re.search(r"(?<!\\)`", page)
    flat = " ".join(WILD.replace("\x1b", "").split())
    for rows in markdown_tables(page).values():
        assert len({len(row) for row in rows}) == 1, "a cell was opened"
    header, *rows = table(page, "Trials")
    row = next(row for row in rows if row[0] == "2")
    assert row[-1] == f"failed: {flat}"
    assert any(name.startswith(flat[:20]) for name in header)
    for width in (80, 250):
        shown = console_text(result, width)
        assert "\x1b" not in shown and "[bold]" in shown
    assert json.loads(json.dumps(found_to_json(result)))["trials"][2]["reason"] == WILD


def test_a_long_reason_is_cut_on_the_console():
    long = replace(TRIALS[2], reason="why " * 500)
    shown = console_text(found((*TRIALS[:2], long)))
    assert shown.count("why") < 30
    assert len(shown) < 10_000


# --- picture ---


@pytest.mark.parametrize(
    "result",
    [
        found(),
        nothing_feasible(name="$\\frac{$ a_b"),
        found(()),
        found((TRIALS[2],)),
        found((TRIALS[3],), candidates=(), continuous=True),
        found((trial(0, 0.0, 0.0),)),
    ],
    ids=["whole", "infeasible", "empty", "failed", "one", "zero"],
)
@pytest.mark.filterwarnings("error")
def test_png_is_the_same_twice(result):
    data = front_png(result)
    assert data.startswith(b"\x89PNG\r\n\x1a\n") and data == front_png(result)
    assert b"Software" not in data[:200]


def test_the_picture_changes_with_what_it_shows():
    pictures = {
        front_png(f) for f in (found(), found(name="other"), found(epsilon=0.02), found(front=(3,)))
    }
    assert len(pictures) == 4


def test_the_front_is_the_lowest_nfr_that_reaches_a_score():
    grid = [trial(i, x / 50, y / 50 - 0.03) for i, (x, y) in enumerate(product(range(3), range(3)))]
    result = found((*grid, *TRIALS[1:2]))
    line = front_line(result)
    assert line == sorted(line) and [y for _, y in line] == sorted(y for _, y in line)
    for t in result.trials:
        reaching = [y for x, y in line if x >= 100 * t.a.gain]
        assert min(reaching) <= 100 * t.a.nfr
