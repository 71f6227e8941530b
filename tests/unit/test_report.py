"""The report: its layout, its numbers, its page and its table."""

import io
import json
import subprocess
import sys
import time

import joined
import numpy as np
import pytest
from rich.console import Console

from muscle.errors import UserError
from muscle.metrics.flips import RATES
from muscle.metrics.intervals import mcnemar_exact, wilson
from muscle.metrics.pairing import join_predictions
from muscle.report import build_report, pick_examples, print_examples, print_table, write_report
from muscle.report.page import render_page
from muscle.report.pairs import reduction_block
from muscle.report.sums import TaskSums
from muscle.report.text import cut, markdown, number, one_line, p_value, percent
from muscle.report.view import reading
from muscle.types import Prediction

WILD = "a|b `c` <script>\n[red]x[/red] \x1b[31m *d* www.x.org"
LIFT = {"old": 0.3, "new": 0.6, "compat": 0.8}


def make(n=120, seeds=(0,), versions=("old", "new", "compat"), continuous=False, task="t"):
    """Predictions with a shared difficulty for each example; compat leans to old's."""
    rng = np.random.default_rng(7)
    out = {}
    for seed in seeds:
        base = rng.normal(size=n)
        old = base + rng.normal(size=n)
        noise = {
            "old": old,
            "new": base + rng.normal(size=n),
            "compat": (base + old) / 2 + rng.normal(size=n) / 2,
        }
        out[seed] = {v: [] for v in versions}
        for v in versions:
            value = noise[v] + LIFT[v]
            score = 1 / (1 + np.exp(-value)) if continuous else (value > 0).astype(float)
            out[seed][v] = [
                Prediction(
                    task, str(i), f"q{i} {WILD}", "yes",
                    "yes" if score[i] == 1 else f"no{rng.integers(3)}",
                    "rouge1" if continuous else "acc", float(score[i]),
                )
                for i in range(n)
            ]  # fmt: skip
    return out


def scored(**scores):
    """Predictions with given scores for one seed."""
    return {
        0: {
            v: [
                Prediction("t", str(i), "q", "a", None if s is None else f"{s}", "acc", s)
                for i, s in enumerate(values)
            ]
            for v, values in scores.items()
        }
    }


def task_of(predictions, **options):
    return build_report(predictions, {}, draws=500, **options)["tasks"]["t"]


FIVE = ["both_right", "negative", "positive", "both_wrong_same", "both_wrong_different"]
NAMES = ["nfr", "pfr", "nfr_mc", "relative_nfr", "btc", "nfi", "kappa", "m_g", "m_r"]
MORE = ["capa", "gain", "gain_p", "independent_nfr", "least_nfr", "replaced", "histogram"]
BOUNDS = ["nfr", "pfr", "relative_nfr", "gain"]
REDUCTION = ["nfr", "nfr_relative", "relative_nfr", "relative_nfr_relative", "m_g", "m_r"]
BLOCK = ["versions", "pairs", "reduction", "noise_floor"]
HEAD = [
    "n", "unscored", "metric", "continuous", "common_only", "comparability", "excluded", "outcomes",
    "near_ties", "chance",
]  # fmt: skip


def check_block(block, counts):
    assert list(block["versions"]) == ["old", "new", "compat"]
    assert all(list(v) == ["score", "ci95", "bounds95"] for v in block["versions"].values())
    assert list(block["pairs"]) == ["old->new", "old->compat", "new->compat"]
    for pair in block["pairs"].values():
        assert list(pair) == [*counts, *NAMES, *MORE, "ci95", "bounds95"]
        assert list(pair["ci95"]) == [*NAMES, "capa", "gain"] and list(pair["bounds95"]) == BOUNDS
        for kind in ("ci95", "bounds95"):
            for name, ends in pair[kind].items():
                assert ends is None or ends[0] <= pair[name] <= ends[1], (kind, name)
    assert list(block["reduction"]) == [*REDUCTION, "ci95", "ci95_seeds", "bounds95", "p"]
    assert list(block["reduction"]["ci95"]) == REDUCTION
    assert list(block["reduction"]["bounds95"]) == ["nfr"]


@pytest.mark.parametrize("continuous", [False, True])
@pytest.mark.parametrize("seeds", [(0,), (0, 3)])
def test_layout(continuous, seeds):
    report = build_report(make(seeds=seeds, continuous=continuous), {"x": 1}, draws=300)
    json.dumps(report, allow_nan=False)
    assert list(report) == ["schema", "provenance", "text", "tasks", "groups"]
    assert report["schema"] == "muscle.report/2" and report["provenance"] == {"x": 1}
    task = report["tasks"]["t"]
    assert list(task) == [*HEAD, *BLOCK, "by_seed", "slices", "slices_note", "slices_rare"]
    assert task["noise_floor"] is None and list(task["by_seed"]) == [str(s) for s in seeds]
    counts = [*FIVE, "equal"] if continuous else FIVE
    for block in (task, *task["by_seed"].values()):
        check_block(block, counts)
    for block in task["by_seed"].values():
        assert list(block) == BLOCK


def test_one_seed_equals_the_formulas():
    predictions = make()
    task, joined = task_of(predictions), join_predictions(predictions)["t"]
    assert task["by_seed"]["0"] == {k: task[k] for k in BLOCK}
    for old, new in joined.pairs:
        counts, pair = joined.counts(0, old, new), task["pairs"][f"{old}->{new}"]
        assert [pair[name] for name in FIVE] == [getattr(counts, name) for name in FIVE]
        for name, formula in RATES.items():
            assert pair[name] == pytest.approx(formula(counts), abs=1e-12), name
        assert pair["ci95"]["nfr"] == pytest.approx(wilson(counts.negative, counts.n))
        right = counts.both_right + counts.negative
        assert pair["ci95"]["btc"] == pytest.approx(wilson(counts.both_right, right))
    new, compat = task["pairs"]["old->new"], task["pairs"]["old->compat"]
    reduction = task["reduction"]
    assert reduction["nfr"] == compat["nfr"] - new["nfr"]
    assert reduction["nfr_relative"] == pytest.approx(compat["nfr"] / new["nfr"] - 1)
    assert reduction["relative_nfr_relative"] == pytest.approx(
        compat["relative_nfr"] / new["relative_nfr"] - 1
    )
    old, update, fixed = (joined.scores[0, v] for v in joined.versions)
    assert reduction["p"] == mcnemar_exact(update < old, fixed < old).p
    low, high = reduction["ci95"]["nfr"]
    assert low < reduction["nfr"] < high < 0


def test_continuous_equals_the_formulas():
    predictions = make(continuous=True)
    task, joined = task_of(predictions), join_predictions(predictions)["t"]
    for old, new in joined.pairs:
        counts, pair = joined.counts(0, old, new), task["pairs"][f"{old}->{new}"]
        assert [pair[c] for c in ("negative", "positive", "equal")] == [
            counts.negative, counts.positive, counts.equal,
        ]  # fmt: skip
        for name, formula in RATES.items():
            assert pair[name] == pytest.approx(formula(counts), abs=1e-12), name


def test_a_flip_counts_as_inconsistent_even_if_both_texts_look_alike():
    """Two choices may share one text; only one of them is right."""
    rows = {
        v: [Prediction("t", str(i), "q", "a", "a", "acc", s) for i, s in enumerate(scores)]
        for v, scores in {"old": [1.0, 0.0, 1.0], "new": [0.0, 0.0, 1.0]}.items()
    }
    pair = task_of({0: rows})["pairs"]["old->new"]
    assert pair["nfr_mc"] == pair["nfr"] == pytest.approx(1 / 3)


def test_continuous_counts_and_nulls():
    pair = task_of(make(continuous=True))["pairs"]["old->new"]
    assert pair["negative"] + pair["positive"] + pair["equal"] == 120
    assert pair["both_right"] is pair["both_wrong_same"] is pair["both_wrong_different"] is None
    for name in ("nfr_mc", "relative_nfr", "btc", "nfi", "kappa"):
        assert pair[name] is None and pair["ci95"][name] is None
    assert pair["ci95"]["m_r"][0] < pair["m_r"] < pair["ci95"]["m_r"][1]


def test_several_seeds_are_means():
    task = task_of(make(seeds=(0, 1, 2)))
    blocks = list(task["by_seed"].values())
    for name, pair in task["pairs"].items():
        assert all(pair[count] is None for count in FIVE)
        for rate in NAMES:
            assert pair[rate] == pytest.approx(np.mean([b["pairs"][name][rate] for b in blocks]))
        assert all(b["pairs"][name]["negative"] is not None for b in blocks)
    assert task["reduction"]["p"] is None and all(b["reduction"]["p"] <= 1 for b in blocks)
    before, after = task["pairs"]["old->new"]["nfr"], task["pairs"]["old->compat"]["nfr"]
    assert task["reduction"]["nfr_relative"] == pytest.approx((after - before) / before)
    wide = blocks[0]["versions"]["old"]["ci95"]
    narrow = task["versions"]["old"]["ci95"]
    assert narrow[1] - narrow[0] < wide[1] - wide[0]


def test_equal_seeds_are_one_seed():
    """The same predictions twice are no new evidence: the interval stays as wide."""
    one = make()
    twice = {0: one[0], 1: one[0]}
    single, double = task_of(one), task_of(twice)
    assert double["reduction"]["ci95"]["nfr"] == pytest.approx(
        single["reduction"]["ci95"]["nfr"], abs=0.02
    )
    assert double["pairs"]["old->new"]["nfr"] == single["pairs"]["old->new"]["nfr"]


def test_an_interval_over_seeds_knows_other_trainings():
    """Seeds whose reductions scatter: examples alone promise too much, both together cover."""
    truth, covered, alone, n = -0.10, 0, 0, 200
    rng = np.random.default_rng(3)
    for _ in range(60):
        seeds = []
        for effect in truth + rng.normal(0, 0.04, size=6):  # what training again does
            old = np.ones(n)
            new, compat = rng.random((2, n)) > np.array([[0.25], [0.25 + effect]])
            seeds.append({"old": old, "new": new.astype(float), "compat": compat.astype(float)})
        block = reduction_block(TaskSums(joined.scored(*seeds), 300, 1), tuple(range(6)))
        low, high = block["ci95_seeds"]["nfr"]
        covered += low <= truth <= high
        low, high = block["ci95"]["nfr"]
        alone += low <= truth <= high
    assert covered >= 55  # of 60; 57 would do, and it is rather too wide
    assert alone < covered - 5


def test_seeds_are_drawn_with_what_belongs_to_them():
    task = join_predictions(make(seeds=(0, 1)))["t"]
    sums = TaskSums(task, 50, 1)
    weights = sums.seed_weights((0, 1))
    assert weights[:, 0].tolist() == [0.5, 0.5] and weights.shape == (2, 51)
    assert set(weights[0, 1:]) == {0.0, 1.0} and (weights.sum(axis=0) == 1).all()
    three = TaskSums(join_predictions(make(seeds=(0, 1, 2)))["t"], 4000, 1).seed_weights((0, 1, 2))
    values = np.array([1.0, 2.0, 6.0])
    spread = np.var(values @ three[:, 1:])
    assert spread == pytest.approx(np.var(values, ddof=1) / 3, rel=0.1)  # not 2/3 of it
    draws = []
    for k in range(1, 51):  # a loop: one seed's own rates in each draw
        s = int(weights[1, k])
        new, compat = (sums.rate("nfr", (s,), ("old", v))[k] for v in ("new", "compat"))
        draws.append(compat / new - 1)
    block = reduction_block(sums, (0, 1))
    assert block["ci95_seeds"]["nfr_relative"] == pytest.approx(np.quantile(draws, [0.025, 0.975]))
    assert reduction_block(sums, (0,))["ci95_seeds"] is None
    report = build_report(make(seeds=(0, 1)), {}, draws=200)
    assert render_page(report).count("over seeds too |") >= 3
    assert "over seeds too |" not in render_page(build_report(make(), {}, draws=200))


def test_without_compat():
    task = task_of(make(versions=("old", "new")))
    assert list(task["versions"]) == ["old", "new"] and list(task["pairs"]) == ["old->new"]
    assert task["reduction"] is None
    assert "right to wrong" in reading(task)


def test_no_flips_and_no_examples():
    same = [1.0, 0.0, 1.0, 1.0]
    task = task_of(scored(old=same, new=same, compat=same))
    pair = task["pairs"]["old->new"]
    assert pair["nfr"] == 0 and pair["m_r"] is None and pair["ci95"]["nfr"][1] > 0.4
    assert task["reduction"]["nfr"] == 0 and task["reduction"]["nfr_relative"] is None
    assert task["reduction"]["ci95"]["nfr"] is None and task["reduction"]["p"] == 1
    assert "nothing to remove" in reading(task)
    two = {0: scored(old=same, new=same)[0], 1: scored(old=same, new=same)[0]}
    assert task_of(two)["pairs"]["old->new"]["ci95"]["nfr"] == pytest.approx(wilson(0, 4))

    empty = build_report(scored(old=[None], new=[1.0], compat=[1.0]), {}, draws=20)
    json.dumps(empty, allow_nan=False)
    task = empty["tasks"]["t"]
    assert (task["n"], task["unscored"]) == (0, 1) and task["versions"]["new"]["score"] is None
    assert "no example" in reading(task)
    print_table(empty, Console(file=io.StringIO()))
    render_page(empty)


def test_numbers_do_not_depend_on_the_order_of_rows():
    predictions = make()
    shuffled = {0: {v: rows[::-1] for v, rows in predictions[0].items()}}
    assert task_of(predictions) == task_of(shuffled)


def test_ten_thousand_examples_take_seconds():
    predictions = make(n=10_000, continuous=True)
    start = time.process_time()  # not the clock, which also counts what others do here
    build_report(predictions, {})
    assert time.process_time() - start < 8


def test_readings():
    n = 200
    old = [1.0] * n
    few, many = [0.0] * 10 + [1.0] * (n - 10), [0.0] * 60 + [1.0] * (n - 60)
    better = reading(task_of(scored(old=old, new=many, compat=few)))
    assert better.startswith("Compat has 83 % fewer negative flips") and "+25.00 points" in better
    worse = reading(task_of(scored(old=old, new=few, compat=many)))
    assert "more negative flips" in worse and "500 % more" in worse
    shifted = [1.0] + [0.0] * 10 + [1.0] * (n - 11)
    unclear = reading(task_of(scored(old=old, new=few, compat=shifted)))
    assert unclear.startswith("No evidence") and "holds 0" in unclear
    same = reading(task_of(scored(old=old, new=few, compat=few)))
    assert same.startswith("No evidence") and "no difference" in same
    assert "rouge1" in reading(task_of(make(continuous=True)))
    task = task_of(scored(old=old, new=few))
    for metric, name in (("correct", "accuracy"), ("acc_norm", "accuracy"), ("exact_match",) * 2):
        assert f"; {name} −5.00 points" in reading({**task, "metric": metric})
    graded = task_of(make(continuous=True))
    assert "; acc_like " in reading({**graded, "metric": "acc_like"})


# The page and the table


def test_page_is_written_and_escaped(tmp_path):
    predictions = make(seeds=(0, 1), task="t|<b>")
    report = build_report(predictions, {"models": {"old": WILD}, "list": [1, None]}, draws=200)
    examples = pick_examples(predictions[0])
    write_report(report, tmp_path / "d" / "report.json", tmp_path / "d" / "report.md", examples)
    assert sorted(p.name for p in (tmp_path / "d").iterdir()) == ["report.json", "report.md"]
    assert json.loads((tmp_path / "d" / "report.json").read_text()) == report
    page = (tmp_path / "d" / "report.md").read_text()
    assert "<" not in page.replace("<!-- -->", "") and "\x1b" not in page and " `c`" not in page
    assert r"a\|b \`c\` &lt;script&gt; \[red\]x" in page
    for words in ("How to read", "Provenance", "models.old", "side by side", "Seed 1", "NFR"):
        assert words in page
    tables = [block.splitlines() for block in page.split("\n\n") if block.startswith("|")]
    assert len(tables) > 8
    for rows in tables:
        widths = {len(row.replace("\\|", "").split("|")) for row in rows}
        assert len(widths) == 1, rows


def test_report_to_a_remote_path():
    import fsspec

    report = build_report(make(n=20), {}, draws=50)
    write_report(report, "memory://muscle-report/r.json", "memory://muscle-report/r.md")
    with fsspec.open("memory://muscle-report/r.json", "rt") as file:
        assert json.load(file) == report


def test_nan_is_refused_before_anything_is_written(tmp_path):
    report = build_report(make(n=20), {"x": float("nan")}, draws=50)
    with pytest.raises(ValueError, match="JSON"):
        write_report(report, tmp_path / "r.json", tmp_path / "r.md")
    assert list(tmp_path.iterdir()) == []


def console_of(call, width=80, **options):
    out = io.StringIO()
    call(Console(file=out, width=width, **options))
    return out.getvalue()


def test_table_shows_everything_in_80_columns():
    shown = console_of(lambda c: print_table(build_report(make(task="[red]x[/red]"), {}), c))
    words = [
        "[red]x[/red]", "n = 120", "score %", "old→compat", "NFR_mc %", "relative NFR", "BTC %",
        "NFI %", "m_g", "m_r", "ΔNFR", "Δ% NFR", "Δ% relative NFR", "p ", "negative flips",
    ]  # fmt: skip
    for word in words:
        assert word in shown, word
    rows = shown.split("Compat has")[0].splitlines()
    assert max(map(len, rows)) <= 80
    # No row is folded: every line with numbers starts with its name.
    assert all(not row[:14].isspace() for row in rows if "]" in row)


def test_flips_on_the_console_are_literal():
    shown = console_of(lambda c: print_examples(pick_examples(make()[0], 1), c))
    assert "[red]x[/red]" in shown and "\x1b" not in shown and "right answer" in shown


def test_ascii_console():
    class Ascii(io.StringIO):
        encoding = "ascii"

    out = Ascii()
    print_table(build_report(make(n=30), {}, draws=50), Console(file=out, width=90))
    out.getvalue().encode("ascii")
    assert "old->new" in out.getvalue()


def test_examples_are_negative_flips_in_a_fixed_order():
    versions = make()[0]
    picked = pick_examples(versions, 3)
    assert len(picked) == 3 and all(e.new.score < e.old.score for e in picked)
    assert all(e.compat.id == e.new.id == e.old.id for e in picked)
    again = pick_examples({v: rows[::-1] for v, rows in versions.items()}, 3)
    assert picked == again
    without = pick_examples({v: versions[v] for v in ("old", "new")}, 3)
    assert [e.old for e in without] == [e.old for e in picked] and without[0].compat is None


def test_text():
    assert percent(0.1027) == "10.27" and percent(-0.00001) == "0.00" and percent(None) == "–"
    assert number(-0.5, 1) == "−0.5" and number(0.5, 1, signed=True) == "+0.5"
    assert p_value(0.0001) == "p < 0.001" and p_value(0.0321) == "p = 0.032"
    assert cut("x" * 100, 30).count("…") == 1 and len(cut("x" * 100, 30)) <= 30
    assert cut("short", 30) == "short"
    assert one_line("a\n\tb \u202e\x1b[0m") == "a b [0m" and one_line(None) == "–"
    assert markdown("a\nb|<i>&") == r"a b\|&lt;i&gt;&amp;"
    # Nobody is mentioned and no issue linked where a page is posted as a comment.
    assert markdown("@user a@b.c @ x") == r"\@<!-- -->user a\@<!-- -->b.c \@ x"
    assert markdown("o/r#12 # 1 gh-3 GH-x") == r"o/r\#<!-- -->12 \# 1 gh-<!-- -->3 GH-x"
    assert markdown("<!-- -->@") == r"&lt;\!-- --&gt;\@"
    assert markdown("www.x http://y") == r"www\.x http\://y"
    assert markdown("now :smile: :+1:") == r"now \:smile: \:+1:"
    assert markdown("metric: acc, sha256:ab12") == "metric: acc, sha256:ab12"


def test_refusals_pass_through():
    with pytest.raises(UserError, match="old and new are needed"):
        build_report({0: {"old": []}}, {})


def test_no_heavy_imports():
    code = (
        "import muscle.report, muscle.metrics, muscle.tables, sys;"
        "heavy = {'torch', 'ray', 'lm_eval', 'transformers', 'datasets', 'scipy', 'statsmodels'};"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
