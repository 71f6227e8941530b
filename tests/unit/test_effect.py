"""The study of benchmarks/effect.py: its statistics by other formulas, what a second start does,
the page from records, and its shipped settings."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import effect
import effect_fits
import effect_queue
import effect_report
from effect_cells import CELLS, FOLDER, SCREENED, Source, seeds_of, write_labelled, write_rows
from effect_choice import ranked
from effect_methods import ALL, CONTROLS, GROWTH, METHODS, RIVALS, Method, candidates
from effect_records import Job, Records, jobs_of
from effect_stats import DRAWS, Cell, above_router, aim, cell_of, flips_of, value_of

from muscle.compatibility_config import CompatibilityConfig
from muscle.experiment import load_experiment
from muscle.metrics.flips import count_flips, relative_nfr
from muscle.types import Prediction

CELL = SCREENED[0]
N = 600


def answers(rng: np.random.Generator, right: np.ndarray, wrong: float, mended: float) -> np.ndarray:
    """Another model's: loses `wrong` of what is right, gains `mended` of the rest."""
    luck = rng.random(len(right))
    return np.where(right == 1, luck >= wrong, luck < mended).astype(float)


def record(method: str, seed: int, scores: Any, part: str = "test", **more: Any) -> dict[str, Any]:
    found = {
        "ids": [f"e{i:04d}" for i in range(len(scores))],
        "scores": [float(s) for s in scores],
        "metric": "acc",
        "sure": [0.9 if s else 0.6 for s in scores],
    }
    return {"cell": CELL, "seed": seed, "method": method, "parts": {part: found},
            "seconds": {"all": 7.0}, **more}  # fmt: skip


def study(seeds: int = 3, part: str = "test") -> list[dict[str, Any]]:
    """old, new (many flips), its floor, two methods and a control, of a known kind."""
    rng = np.random.default_rng(3)
    found = []
    for seed in range(seeds):
        old = (rng.random(N) < 0.85).astype(float)
        made = {
            "old": old,
            "again": answers(rng, old, 0.02, 0.1),
            "new": answers(rng, old, 0.09, 0.5),
            "ce": answers(rng, old, 0.09, 0.5),
            "by-old+u": answers(rng, old, 0.02, 0.5),
        }
        made["by-mean+u"] = answers(rng, old, 0.2, 0.1)
        found += [record(name, seed, scores, part) for name, scores in made.items()]
    return found


def the_cell(seeds: int = 3) -> Cell:
    found = cell_of(study(seeds), CELL, "test")
    assert found is not None
    return found


# --- statistics -----------------------------------------------------------------------------


def test_rates_are_the_means_over_seeds_of_the_projects_metrics() -> None:
    cell = the_cell()
    rates = cell.rates("new", cell.seeds())
    counts = [
        count_flips(cell.scores["old"][s] == 1, cell.scores["new"][s] == 1) for s in cell.seeds()
    ]
    assert rates.flips[0] == pytest.approx(np.mean([relative_nfr(c) for c in counts]))
    assert rates.nfr[0] == pytest.approx(np.mean([c.negative / N for c in counts]))
    scores = [cell.scores["new"][s].mean() for s in cell.seeds()]
    assert rates.score[0] == pytest.approx(np.mean(scores))


def test_the_interval_of_one_seed_is_that_of_a_plain_paired_bootstrap() -> None:
    cell = the_cell(1)
    (seed,) = cell.seeds()
    mine, new = cell.rates("by-old+u", [seed]), cell.rates("new", [seed])
    found = value_of(mine.score - new.score)
    # The difference of two means over the same examples: normal theory.
    paired = cell.scores["by-old+u"][seed] - cell.scores["new"][seed]
    spread = 1.96 * paired.std(ddof=1) / math.sqrt(N)
    assert found.value == pytest.approx(paired.mean())
    assert found.low == pytest.approx(paired.mean() - spread, abs=0.15 * spread)
    assert found.high == pytest.approx(paired.mean() + spread, abs=0.15 * spread)


def test_seeds_are_resampled_too() -> None:
    """Seeds that differ widen the interval: of examples alone it would be 0 here."""
    old = np.ones(N)
    records = [record("old", s, old) for s in range(4)]
    for seed in range(4):
        wrong = np.arange(N) % 10 < seed + 1
        records.append(record("new", seed, np.where(wrong, 0.0, 1.0)))
    cell = cell_of(records, CELL, "test")
    assert cell is not None
    of_seeds = value_of(cell.rates("new", cell.seeds()).score)
    one = value_of(cell.rates("new", [0]).score)
    assert of_seeds.value == pytest.approx(1 - 0.25)
    assert of_seeds.low is not None and one.low is not None
    # Means of 4 draws of .9, .8, .7, .6: sd .0559.
    assert of_seeds.high - of_seeds.low == pytest.approx(2 * 1.96 * 0.0559, rel=0.2)
    assert one.high - one.low < 0.06


def test_differences_are_paired() -> None:
    cell = the_cell()
    seeds = cell.seeds()
    same = cell.rates("new", seeds).flips - cell.rates("new", seeds).flips
    assert (same == 0).all() and len(same) == DRAWS + 1


def test_the_router_lies_on_its_own_line() -> None:
    """Answering with old at p = .5, drawn: half the flips, and a score half of the way."""
    cell = the_cell(1)
    rng = np.random.default_rng(0)
    old, new = cell.scores["old"][0], cell.scores["new"][0]
    drawn = np.mean([above(np.where(rng.random(N) < 0.5, old, new), old, new) for _ in range(300)])
    assert drawn == pytest.approx(0, abs=0.002)
    seeds = cell.seeds()
    rates = [cell.rates(m, seeds) for m in ("new", "old", "new")]
    assert above_router(*rates)[0] == pytest.approx(0)


def above(mine: np.ndarray, old: np.ndarray, new: np.ndarray) -> float:
    """The score above the line between (NFR of new, score of new) and (0, score of old)."""
    nfr, nfr_new = ((mine < old).mean(), (new < old).mean())
    slope = (new.mean() - old.mean()) / nfr_new
    return float(mine.mean() - (old.mean() + slope * nfr))


def test_the_aim_is_reached_by_what_keeps_old_and_missed_by_what_loses() -> None:
    cell = the_cell()
    good = {check.name: check for check in aim(cell, "by-old+u", RIVALS)}
    assert good["40 % below new"].state == "yes"
    assert good["fewer flips than ce"].state == "yes"
    assert good["score ≥ new − 0.5 points"].state == "yes"
    bad = {check.name: check for check in aim(cell, "by-mean+u", RIVALS)}
    assert bad["40 % below new"].state == bad["score ≥ new − 0.5 points"].state == "no"
    seeds = cell.seeds()
    lost = cell.rates("new", seeds).score[0] - cell.rates("by-mean+u", seeds).score[0]
    assert bad["score ≥ new − 0.5 points"].value.value == pytest.approx(0.005 - lost)
    # No rival that wasn't run is judged.
    assert not any("ce-labelled" in name for name in good)


def test_what_still_flips() -> None:
    old = np.array([1.0, 1, 1, 1, 0, 0])
    records = [
        record("old", 0, old),
        record("new", 0, [0, 0, 1, 1, 1, 0]),
        record("again", 0, [0, 1, 1, 0, 0, 0]),
    ]
    cell = cell_of(records, CELL, "test")
    assert cell is not None
    found = flips_of(cell, "new")
    assert found is not None and found.count == 2
    assert found.lucky == pytest.approx(1 / 2) and found.lucky_all == pytest.approx(2 / 4)
    assert found.sure["method"] == pytest.approx(0.6) and found.sure["old"] == pytest.approx(0.9)
    assert found.sure_all["method"] == pytest.approx((0.6 * 2 + 0.9 * 2) / 4)


def test_graded_scores_count_what_got_worse() -> None:
    records = [record("old", 0, [0.5, 0.4, 0.3, 0.0]), record("new", 0, [0.4, 0.4, 0.5, 0.1])]
    cell = cell_of(records, CELL, "test")
    assert cell is not None and cell.graded
    assert cell.rates("new", [0]).flips[0] == pytest.approx(1 / 4)


def test_records_of_other_examples_are_refused() -> None:
    records = [record("old", 0, np.ones(5)), record("new", 0, np.ones(6))]
    with pytest.raises(ValueError, match="other examples"):
        cell_of(records, CELL, "test")


def test_the_best_are_those_with_the_fewest_flips_at_news_score() -> None:
    found = ranked(study(1, "tuning"), [CELL], ["by-old+u", "by-mean+u", "ce", "old"])
    assert found[0].method in ("old", "by-old+u") and found[0].ratio < 0.5 and found[0].allowed
    (loser,) = [row for row in found if row.method == "by-mean+u"]
    assert not loser.allowed and loser.gains[CELL] < -0.005
    allowed = [row.allowed for row in found]
    assert allowed == sorted(allowed, reverse=True)
    # Who ran on fewer of the cells stands behind who ran on all.
    two = [{**r, "cell": SCREENED[1]} for r in study(1, "tuning") if r["method"] != "by-old+u"]
    both = ranked([*study(1, "tuning"), *two], SCREENED, ["by-old+u", "old"])
    assert [(row.method, row.missing) for row in both] == [("old", 0), ("by-old+u", 1)]
    # What didn't run isn't ranked.
    assert ranked(study(1, "tuning"), [CELL], ["by-confident+u"]) == []


# --- what a second start does ---------------------------------------------------------------


def test_only_what_is_missing_is_done(tmp_path: Path) -> None:
    records = Records(tmp_path)
    jobs = jobs_of([CELL], {CELL: [0, 1]}, ["old", "new"], "tuning")
    assert [(j.seed, j.method) for j in jobs] == [(0, "old"), (0, "new"), (1, "old"), (1, "new")]
    part = record("old", 0, [1.0], "tuning")["parts"]
    records.put(jobs[0], {"parts": part, "seconds": {"all": 3.0}})
    assert [(j.seed, j.method) for j in records.missing(jobs)] == [
        (0, "new"), (1, "old"), (1, "new")
    ]  # fmt: skip
    # A part is added to a record; its fit's seconds stay.
    both = Job(CELL, 0, "old", ("tuning", "test"))
    assert records.lacks(both) == ("test",)
    records.put(both, {"parts": record("old", 0, [1.0])["parts"], "seconds": {"all": 1.0}})
    found = records.find(CELL, 0, "old")
    assert found is not None and set(found["parts"]) == {"tuning", "test"}
    assert found["seconds"] == {"all": 3.0} and records.lacks(both) == ()


def test_what_cannot_be_done_is_tried_again_only_when_asked(tmp_path: Path) -> None:
    records = Records(tmp_path)
    job = Job(CELL, 0, "by-old+u", ("tuning",))
    records.put(job, {"impossible": "other tokens"})
    assert records.missing([job]) == [] and records.missing([job], retry=True) == [job]


def test_a_record_of_other_settings_does_not_count(tmp_path: Path) -> None:
    records = Records(tmp_path)
    job = Job(CELL, 0, "by-old+u", ("tuning",))
    records.put(job, {"parts": {"tuning": {}}})
    assert records.missing([job]) == []
    changed = {**METHODS, "by-old+u": Method("by-old+u", "t", "answer", loss={"temperature": 3.0})}
    assert Records(tmp_path, changed).missing([job]) == [job]


def test_a_half_written_record_does_not_count(tmp_path: Path) -> None:
    records = Records(tmp_path)
    job = Job(CELL, 0, "old", ("tuning",))
    records.put(job, {"parts": {"tuning": {}}})
    path = records.path(CELL, 0, "old")
    path.write_text(path.read_text()[:-20])
    assert records.missing([job]) == [job] and records.all() == []


def test_what_another_process_has_done_is_not_done_again(tmp_path: Path) -> None:
    job = Job(CELL, 0, "old", ("tuning",))
    Records(tmp_path).put(job, {"parts": {"tuning": {}}})
    # There are no rows here, so that doing it would fail.
    assert effect_queue.do(tmp_path, job) == "was done by another process"


def test_the_queue_ends_with_its_time_and_keeps_failures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def do(work: Path, job: Job) -> str:
        done.append(job.method)
        return "failed, …" if job.method == "new" else "1 s"

    monkeypatch.setattr(effect_queue, "do", do)
    jobs = jobs_of([CELL], {CELL: [0]}, ["old", "new", "ce"], "tuning")
    left = effect_queue.work_off(tmp_path, jobs, 1, effect_queue.Clock(None))
    assert done == ["old", "new", "ce"] and [job.method for job in left] == ["new"]
    assert effect_queue.work_off(tmp_path, jobs, 1, effect_queue.Clock(-1.0)) == jobs


def test_phases(tmp_path: Path) -> None:
    args = effect.parsed(["--work", str(tmp_path), "--screen"])
    jobs = effect.screening(args)
    assert {job.cell for job in jobs} == set(SCREENED) and {job.parts for job in jobs} == {
        ("tuning",)
    }
    assert {job.method for job in jobs} == set(METHODS) and {job.seed for job in jobs} == {0}
    args = effect.parsed(
        ["--work", str(tmp_path), "--full", "--tasks", "piqa", "--best", "by-old+u", "--seeds", "2"]
    )
    whole = effect.whole(args, Records(tmp_path), "tuning")
    assert {job.cell for job in whole} == {"piqa-v1-v2", "piqa-v1-v3"}
    assert {job.method for job in whole} == {*CONTROLS, "by-old+u"}
    assert {job.seed for job in whole} == {0, 1}
    with pytest.raises(SystemExit):
        effect.parsed(["--work", str(tmp_path), "--full", "--updates", "v7-v8"])


# --- the page -------------------------------------------------------------------------------


@pytest.fixture
def work(tmp_path: Path) -> Path:
    for task in {cell.split("-")[0] for cell in CELLS}:
        folder = tmp_path / "data" / task
        folder.mkdir(parents=True)
        (folder / "rows.json").write_text(json.dumps({"train": 3200, "test": N, "further": 4300}))
    return tmp_path


def test_the_page_says_what_was_measured_and_what_was_left_out(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks/effect.py", "--work", str(work), "--report"])
    page = tmp_path / "docs" / "effect.md"
    records = [*study(), *study(1, "tuning")]
    records.append(
        {**record("mask-old-right-all", 0, [], "x"), "parts": {}, "impossible": "tokens"}
    )
    effect_report.write_page(work, records, ["by-old+u"], page, tmp_path / "results")
    text = page.read_text(encoding="utf-8")
    cell = the_cell()
    rates = cell.rates("new", cell.seeds())
    assert f"{100 * rates.nfr[0]:.1f} [" in text
    aims = text.split("<!-- table aim -->")[1].split("<!-- end -->")[0]
    assert "| old teaches, + unlabelled | subjectivity, v1→v2 | yes |" in aims
    left = text.split("<!-- table left-out -->")[1]
    assert "- piqa, v1→v2: not run." in left
    assert f"{3} of {seeds_of(CELL)} seeds" in left and "mask-old-right-all: tokens" in left
    assert "only 4,300 further inputs" in left
    svg = (page.parent / "effect" / f"{CELL}.svg").read_text()
    assert "random router" in svg and "by-old+u" in svg
    written = (tmp_path / "results" / "effect.json").read_text()
    assert str(work) not in written, "a folder of this machine"
    found = json.loads(written)
    assert found["cells"][CELL]["methods"]["new"]["nfr"][0] == pytest.approx(rates.nfr[0], rel=1e-4)


def test_what_was_only_screened_is_shown_and_not_called_left_out(
    work: Path, tmp_path: Path
) -> None:
    """The best are asked the test, and the growth of the effect stays that of the tuning data."""
    page = tmp_path / "docs" / "effect.md"
    by = METHODS["by-mean+u"]
    tuned = study(1, "tuning")
    like = next(r for r in tuned if r["method"] == "by-old+u")
    grown = [{**like, "method": name} for name in (by.name, "by-mean+4000")]
    effect_report.write_page(work, [*study(), *tuned, *grown], ["by-old+u"], page, tmp_path / "r")
    text = page.read_text(encoding="utf-8")
    growth = text.split("<!-- table growth -->")[1].split("<!-- end -->")[0]
    assert "seed 0, tuning data." in growth and "| mean teaches | 2 |" in growth
    assert (page.parent / "effect" / f"growth-inputs-{CELL}.svg").is_file()
    without = text.split("<!-- table left-out -->")[1].split(" without ")[1].splitlines()[0]
    assert "by-mean+8000" in without and "by-mean+4000" not in without


def test_words_between_the_tables_stay_and_tables_are_replaced(work: Path, tmp_path: Path) -> None:
    page = tmp_path / "effect.md"
    effect_report.write_page(work, study(1, "tuning"), [], page, tmp_path / "r")
    text = page.read_text(encoding="utf-8")
    assert "the test split wasn't read yet" in text
    page.write_text(text.replace("## The aim\n", "## The aim\n\nOur words.\n"), encoding="utf-8")
    effect_report.write_page(work, study(), ["by-old+u"], page, tmp_path / "r")
    text = page.read_text(encoding="utf-8")
    assert "Our words." in text and "the test split wasn't read yet" not in text
    assert text.count("<!-- table aim -->") == 1


# --- answers --------------------------------------------------------------------------------


def prediction(name: str, loglikelihoods: tuple[float, ...] | None, gold: str = "a") -> Prediction:
    best = "a" if loglikelihoods is None else "ab"[int(np.argmax(loglikelihoods))]
    choices = None if loglikelihoods is None else ("a", "b")
    return Prediction(
        task="t", id=name, question="q", gold=gold, prediction=best, metric="acc",
        score=float(best == gold), choices=choices, loglikelihoods=loglikelihoods,
    )  # fmt: skip


def test_two_models_together_take_the_choice_with_the_highest_mean_probability() -> None:
    log = math.log
    one = [prediction("x", (log(0.9), log(0.1))), prediction("y", (log(0.4), log(0.6)))]
    two = [prediction("y", (log(0.5), log(0.3))), prediction("x", (log(0.2), log(0.6)))]
    found = effect_fits.averaged([one, two])
    # x: (.9 + .25) / 2 = .575 of a; y: (.4 + .625) / 2 = .5125 of a: two lie on the same side.
    assert found["ids"] == ["x", "y"] and found["scores"] == [1.0, 1.0]
    assert found["sure"] == [pytest.approx(0.575), pytest.approx(0.5125)]
    with pytest.raises(effect_fits.Impossible, match="written"):
        effect_fits.averaged([[prediction("x", None)], [prediction("x", None)]])


def test_outcomes_are_by_id_and_an_unscored_one_stays() -> None:
    rows = [prediction("y", (0.0, 1.0)), replace(prediction("x", (1.0, 0.0)), score=None)]
    found = effect_fits.outcomes(rows)
    assert found["ids"] == ["x", "y"] and found["scores"] == [None, 0.0]
    share = 1 / (1 + math.exp(-1))
    assert found["sure"] == [pytest.approx(share, abs=1e-4)] * 2
    assert found["right"] == [pytest.approx(share, abs=1e-4), pytest.approx(1 - share, abs=1e-4)]


def test_several_seeds_teach_their_mean_distribution() -> None:
    # Whole-answer log-likelihoods are far below 0; only their differences count.
    found = np.exp(effect_fits.mean_distribution([[-500.0, -500.0], [-3.0, -3.0 - math.log(3)]]))
    assert found == pytest.approx([(0.5 + 0.75) / 2, (0.5 + 0.25) / 2])


# --- its tables and rows --------------------------------------------------------------------


@pytest.mark.parametrize("cell", CELLS)
def test_every_cell_has_settings_of_its_name(cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MUSCLE_DATA", "MUSCLE_MODELS", "MUSCLE_STUDY"):
        monkeypatch.setenv(name, "/somewhere")
    experiment = load_experiment(FOLDER / f"{cell}.yaml")
    task, old, new = cell.split("-")
    assert experiment.name == cell and experiment.task.name == task
    assert experiment.old.model.endswith(old) and experiment.new.model.endswith(new)
    training, compat = experiment.training, experiment.compatibility
    rest = 3200 * (1 - (training.tuning_fraction or 0))
    assert rest * (1 - training.validation_fraction) == pytest.approx(2000)
    # The prototype's start: half of the task's rate, two epochs.
    assert compat.learning_rate == training.learning_rate / 2 and compat.epochs == 2
    assert {file.stem for file in FOLDER.glob("*.yaml")} == set(CELLS)


@pytest.mark.parametrize("name", METHODS)
def test_every_methods_settings_are_valid(name: str) -> None:
    method = METHODS[name]
    settings = CompatibilityConfig.model_validate({"level": "choice", **method.loss})
    if method.kind == "fit" and method.more:
        assert settings.by_choice, "inputs without labels are of level choice"
    assert not (method.labelled and settings.ce_weight != 1.0)


def test_the_methods_of_the_issue_are_there() -> None:
    assert len(METHODS) == len(ALL), "two methods of one name"
    assert METHODS["old"].kind == METHODS["new"].kind == "version"
    masks = [m for m in METHODS.values() if m.group == "published"]
    assert len(masks) == 12 and {m.training["loss_on"] for m in masks} == {"all", "answer"}
    teachers = {m.loss["teacher"] for m in METHODS.values() if m.group == "answer"}
    assert teachers == {"old", "new", "mean", "confident", "old-where-right"}
    assert set(RIVALS) < set(CONTROLS) and not set(candidates()) & set(CONTROLS)
    varied = [name for lines in GROWTH.values() for line in lines.values() for _, name in line]
    assert set(varied) <= set(METHODS)


def test_rows_of_the_test_split_train_nobody(tmp_path: Path) -> None:
    rows = {
        "train": [{"text": f"t{i}", "label": i % 2} for i in range(12_000)],
        "test": [{"text": f"t{i}", "label": i % 2} for i in range(0, 200, 2)],
    }
    source = Source(("text",), ("label",), lambda split: rows[split])
    folder = tmp_path / "data" / "x"
    write_rows(folder, source)

    def read(name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (folder / name).read_text().splitlines()]

    train, test, more = read("train.jsonl"), read("test.jsonl"), read("more-8000.jsonl")
    assert len(train) == 3200 and len(more) == 8000
    texts = [{row["text"] for row in part} for part in (train, test, more)]
    assert not texts[0] & texts[1] and not texts[0] & texts[2] and not texts[1] & texts[2]
    assert all("label" not in row for row in more)
    assert read("more-1000.jsonl") == more[:1000]
    held_out = {row["id"] for row in train[:800]}
    labelled = write_labelled(tmp_path, "x", held_out, 2000)
    found = [json.loads(line) for line in labelled.read_text().splitlines()]
    assert len(found) == 2400 + 2000 and not held_out & {row["id"] for row in found}
    assert all("label" in row for row in found)
    assert {row["text"] for row in found[2400:]} == {row["text"] for row in more[:2000]}
