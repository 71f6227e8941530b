"""examples.parquet: what stands in it, and that the report can be made of it again."""

import random

import numpy as np
import pyarrow.parquet as pq
import pytest

from muscle.errors import UserError
from muscle.metrics import bounds
from muscle.metrics.pairing import join_sides
from muscle.report import example_table
from muscle.report.build import ReportOptions, report_of
from muscle.report.example_reader import read_example_table
from muscle.report.example_table import write_example_table
from muscle.side import side_of
from muscle.types import Prediction

CHOICES = ("cat", "dog", "<b>cow</b>", "é")
OPTIONS = ReportOptions(draws=60, min_slice=5)


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    """The same numbers twice need no exact bounds."""
    monkeypatch.setattr(bounds, "DRAWS", 1_000)


def rows(seed, version, n=150, kind="choice", task="t", prompts=False):
    """Judged examples in a random order; every version leaves some unscored."""
    rng = np.random.default_rng([seed, len(version), ord(version[0])])
    out = []
    for i in range(n):
        logs = np.round(rng.normal(size=4) - 5, 3)
        logs[0] += 1.2
        chosen = int(logs.argmax())
        score = float(chosen == 0) if kind == "choice" else float(np.round(rng.random(), 1))
        unscored = rng.random() < 0.03
        out.append(
            Prediction(
                task=task,
                id=f"x{i}",
                question=f"q{i}" + (" again" if prompts and i % 3 == 0 else ""),
                gold=CHOICES[0],
                prediction=None if unscored else CHOICES[chosen] if kind == "choice" else f"{i}",
                metric="acc" if kind == "choice" else "rouge1",
                score=None if unscored else score,
                choices=CHOICES if kind == "choice" else None,
                loglikelihoods=tuple(logs.tolist()) if kind == "choice" else None,
                error="it broke" if unscored else None,
                response=f"said {i}" if kind != "choice" else None,
                truncated="prompt" if i % 20 == 0 else None,
                document=f"hash{i}",
                fields={"subject": f"s{i % 4}"},
            )
        )
    random.Random(seed).shuffle(out)
    return out


def joined(seeds=(0,), names=("old", "new", "compat", "again"), tasks=("t",), **options):
    return join_sides(
        {
            seed: {
                name: {
                    task: side_of(
                        rows(seed, name, task=task, prompts=name == "compat", **options),
                        name,
                        {"dtype": "float32"},
                    )
                    for task in tasks
                }
                for name in names
            }
            for seed in seeds
        }
    )


@pytest.fixture(autouse=True)
def small_groups(monkeypatch):
    """Several row groups for each task and seed."""
    monkeypatch.setattr(example_table, "ROWS", 64)
    monkeypatch.setattr("muscle.report.example_reader.ROWS", 64)


def write(tmp_path, tasks, text="page"):
    path = str(tmp_path / "new folder" / "examples.parquet")
    write_example_table(path, tasks, text)
    assert [p.name for p in (tmp_path / "new folder").iterdir()] == ["examples.parquet"]
    return path


def by_hand(before, after):
    """The outcome of an example, from two predictions."""
    if before.score == after.score == 1:
        return "both_right"
    if before.score != after.score:
        return "negative" if after.score < before.score else "positive"
    return "both_wrong_same" if before.prediction == after.prediction else "both_wrong_different"


def test_every_row_is_what_the_sides_hold(tmp_path):
    table = pq.read_table(write(tmp_path, joined(seeds=(0, 2)))).to_pylist()
    names = ("old", "new", "compat", "again")
    sides = {
        (s, v): {p.id: p for p in rows(s, v, prompts=v == "compat")} for s in (0, 2) for v in names
    }
    keys = [(row["task"], row["seed"], row["id"]) for row in table]
    assert keys == sorted(keys) and len(set(keys)) == 300
    everywhere = {
        i for i in sides[0, "old"] if all(side[i].score is not None for side in sides.values())
    }
    for row in table:
        each = {v: sides[row["seed"], v][row["id"]] for v in names}
        assert row["question"] == each["old"].question and row["gold"] == "cat"
        assert row["choices"] == list(CHOICES) and row["document"] == each["old"].document
        assert dict(row["fields"]) == each["old"].fields
        for v, p in each.items():
            assert row[f"{v}_score"] == p.score and row[f"{v}_answer"] == p.prediction
            assert row[f"{v}_loglikelihoods"] == list(p.loglikelihoods)
            assert row[f"{v}_error"] == p.error and row[f"{v}_truncated"] == p.truncated
            best, second = sorted(p.loglikelihoods)[:-3:-1]
            assert row[f"{v}_near_tie"] is (best - second <= 1e-5 * abs(best))
            if v != "old":
                other = p.question if p.question != each["old"].question else None
                assert row[f"{v}_question"] == other
        for pair in ("old_new", "old_compat", "new_compat", "old_again"):
            before, after = (each[v] for v in pair.split("_"))
            known = row["id"] in everywhere
            assert row[pair] == (by_hand(before, after) if known else "unscored")
        new = each["new"]
        if new.prediction is None:
            assert row["margin"] is None
        else:
            logs = dict(zip(CHOICES, new.loglikelihoods, strict=True))
            assert row["margin"] == pytest.approx(logs[new.prediction] - logs["cat"])


def test_continuous_rows(tmp_path):
    tasks = joined(names=("old", "new"), kind="graded")
    table = pq.read_table(write(tmp_path, tasks)).to_pylist()
    assert "compat_score" not in table[0] and "old_again" not in table[0]
    assert {row["old_new"] for row in table} == {"negative", "positive", "equal", "unscored"}
    for row in table:
        if row["old_new"] == "unscored":
            assert row["margin"] is None
            continue
        change = row["new_score"] - row["old_score"]
        assert row["margin"] == pytest.approx(abs(change))
        kind = "equal" if change == 0 else "negative" if change < 0 else "positive"
        assert row["old_new"] == kind
        assert row["old_response"].startswith("said") and row["new_near_tie"] is None


def test_without_texts(tmp_path):
    path = write(tmp_path, joined(), "none")
    table = pq.read_table(path)
    for name in table.column_names:
        if name.split("_")[-1] in ("question", "gold", "choices", "fields", "answer", "response"):
            assert table.column(name).null_count == table.num_rows, name
    for secret in (b"cow", b"again", b"said", b"subject"):
        assert secret not in b"".join(
            str(v).encode()
            for name in table.column_names
            if name not in ("task", "id")
            for v in table.column(name).to_pylist()
        )
    assert table.column("old_new").null_count == 0
    assert table.column("margin").null_count < 20  # computed from what isn't shown
    assert table.column("new_loglikelihoods").null_count == 0
    again = report_of(read_example_table(path), {}, OPTIONS)["tasks"]["t"]
    whole = report_of(joined(), {}, OPTIONS)["tasks"]["t"]
    for pair, block in whole["pairs"].items():
        for name in ("nfr", "nfr_mc", "both_wrong_same", "gain", "bounds95"):
            assert again["pairs"][pair][name] == block[name], name
    assert again["noise_floor"] == whole["noise_floor"]


@pytest.mark.parametrize(
    ("kind", "seeds"), [("choice", (0,)), ("choice", (1, 4)), ("graded", (1, 4))]
)
def test_the_report_can_be_made_again(tmp_path, kind, seeds):
    tasks = joined(seeds=seeds, tasks=("t", "u"), kind=kind)
    path = write(tmp_path, tasks)
    again = read_example_table(path)
    assert report_of(again, {}, OPTIONS) == report_of(tasks, {}, OPTIONS)
    assert again["u"].counts(seeds[0], "old", "new") == tasks["u"].counts(seeds[0], "old", "new")


def test_waived_flips_are_counted_nowhere(tmp_path):
    tasks = joined()
    again = read_example_table(write(tmp_path, tasks))
    task = tasks["t"]
    ids = np.array(task.ids.to_pylist())
    flipped = ids[task.worse(0, ("old", "new"))]
    waived = {"t": {*flipped[:4].tolist(), "no such id"}, "no such task": {"x1"}}
    before = report_of(tasks, {}, OPTIONS)["tasks"]["t"]
    after = report_of(again, {}, OPTIONS, waived=waived)["tasks"]["t"]
    gone = np.isin(ids, flipped[:4])
    for pair, block in after["pairs"].items():
        same = before["pairs"][pair]
        less = int((task.worse(0, tuple(pair.split("->"))) & gone).sum())
        assert less > 0 or pair == "new->compat"
        assert block["negative"] == same["negative"] - less
        assert block["both_right"] == same["both_right"] + less
        assert (
            sum(block[c] for c in ("both_right", "negative", "positive"))
            + (block["both_wrong_same"] + block["both_wrong_different"])
            == after["n"]
            == before["n"]
        )
        assert block["nfr"] == pytest.approx(block["negative"] / after["n"])
        assert block["nfr_mc"] <= same["nfr_mc"] and block["positive"] == same["positive"]
        assert (
            block["gain"] == same["gain"] and block["bounds95"]["gain"] == same["bounds95"]["gain"]
        )
        assert block["bounds95"]["nfr"][1] <= same["bounds95"]["nfr"][1]
    assert after["versions"] == before["versions"]
    floor = int((task.worse(0, ("old", "again")) & gone).sum())
    assert after["noise_floor"]["counts"]["negative"] == (
        before["noise_floor"]["counts"]["negative"] - floor
    )
    assert after["noise_floor"]["excess"]["old->new"]["nfr"] == pytest.approx(
        after["pairs"]["old->new"]["nfr"] - after["noise_floor"]["nfr"]
    )
    assert task.waived is None and report_of(tasks, {}, OPTIONS)["tasks"]["t"] == before


def test_waived_where_the_metric_is_continuous():
    tasks = joined(kind="graded")
    ids = np.array(tasks["t"].ids.to_pylist())
    flipped = ids[tasks["t"].worse(0, ("old", "new"))].tolist()
    block = report_of(tasks, {}, OPTIONS, waived={"t": flipped})["tasks"]["t"]["pairs"]["old->new"]
    plain = report_of(tasks, {}, OPTIONS)["tasks"]["t"]["pairs"]["old->new"]
    assert block["negative"] == 0 and block["nfr"] == 0 and block["m_r"] is None
    assert block["equal"] == plain["equal"] + plain["negative"] and block["gain"] == plain["gain"]


def test_what_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_example_table(str(tmp_path / "none.parquet"))
    path = write(tmp_path, joined())
    data = open(path, "rb").read()
    (tmp_path / "half.parquet").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="not a whole Parquet file"):
        read_example_table(str(tmp_path / "half.parquet"))
    plain = pq.read_table(path, columns=["id"]).replace_schema_metadata(None)
    pq.write_table(plain, tmp_path / "foreign.parquet")
    with pytest.raises(UserError, match="not a whole table of examples of ours"):
        read_example_table(str(tmp_path / "foreign.parquet"))


def test_a_remote_place():
    path = "memory://muscle-examples/deep/examples.parquet"
    write_example_table(path, joined(names=("old", "new")), "page")
    assert read_example_table(path)["t"].versions == ("old", "new")


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="can't be written"):
        write_example_table(str(tmp_path / "file" / "x.parquet"), joined(), "page")
