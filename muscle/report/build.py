"""Builds report.json: every number of a comparison, as fractions, null where undefined."""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from muscle.metrics.excluded import chance_score, excluded_block
from muscle.metrics.groups import group_blocks
from muscle.metrics.intervals import DRAWS, SEED
from muscle.metrics.outcomes import outcome_block
from muscle.metrics.pairing import JoinedTask, Predictions, join_predictions, without_flips
from muscle.metrics.slices import Sliced, slice_blocks
from muscle.metrics.ties import near_tie_block
from muscle.report.floor import floor_block
from muscle.report.pairs import pair_block, reduction_block, version_block
from muscle.report.private import slices_without_texts, without_texts
from muscle.report.sums import Seeds, TaskSums

SCHEMA = "muscle.report/2"


@dataclass(frozen=True)
class ReportOptions:
    """How a report is made.

    draws      bootstrap draws; `seed` is their random seed
    slices     columns to slice by; None: those that are fit for it
    min_slice  examples that a slice needs, to be shown by itself
    text       where examples' texts are shown: "page", "all" or "none" (nowhere; then only
               columns that are named are sliced by)
    groups     task group -> its tasks
    """

    draws: int = DRAWS
    seed: int = SEED
    slices: tuple[str, ...] | None = None
    min_slice: int = 50
    text: str = "page"
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def build_report(
    predictions: Predictions,
    provenance: Mapping[str, Any],
    *,
    draws: int = DRAWS,
    seed: int = SEED,
) -> dict[str, Any]:
    """`report_of` for lists of predictions.

    Args:
        predictions: training seed -> version -> predictions, of one or several tasks;
            old and new in every seed, compat in all or none.
        provenance: where the predictions come from; plain JSON values, copied as given.
        draws: bootstrap draws; `seed` is their random seed.

    Raises:
        UserError: the predictions can't be joined (see `join_predictions`).
    """
    options = ReportOptions(draws=draws, seed=seed)
    return report_of(join_predictions(predictions), provenance, options)


def report_of(
    tasks: Mapping[str, JoinedTask],
    provenance: Mapping[str, Any],
    options: ReportOptions | None = None,
    *,
    waived: Mapping[str, Collection[str]] | None = None,
) -> dict[str, Any]:
    """Compare versions and return the content of report.json (DESIGN.md has its layout).

    Args:
        tasks: what `join_sides` returned.
        provenance: where the examples come from; plain JSON values, copied as given.
        options: how; `ReportOptions()` if None.
        waived: task -> ids of examples whose negative flips don't count, in any pair and in
            the noise floor. They count as both right (as equal where the metric is
            continuous), so that the counts still sum to n; scores, gains and what is
            computed from scores alone (`least_nfr`, `independent_nfr`) stay.

    Returns:
        Plain JSON values: fractions, never NaN. `by_seed` always holds every seed's own
        versions, pairs, reduction and noise floor. With one seed the top level is the same;
        with several it holds means over seeds, counts and p are null there, and intervals
        come from a bootstrap that draws the same examples in all seeds. They say how
        sure the mean is for these trained models on other examples; the spread over
        seeds stands in `by_seed`, and `reduction.ci95_seeds` draws the seeds too. A mean is
        null when one seed's value is.

        p (exact McNemar on "old right, new wrong" against "old right, compat wrong") is
        null for several seeds: one example under several seeds is not several
        independent examples, so neither pooling the counts nor combining the p values
        would be right. The interval at the top holds what can be said.

        `bounds95` are one-sided 95 % bounds (see `muscle.metrics.bounds`); they are null
        only without examples, or where the number itself is.

    Raises:
        UserError: a column to slice by isn't there.
    """
    options = options or ReportOptions()
    if waived is not None:
        tasks = {
            name: without_flips(task, waived[name]) if name in waived else task
            for name, task in tasks.items()
        }
    return {
        "schema": SCHEMA,
        "provenance": dict(provenance),
        "text": options.text,
        "tasks": {name: _task(task, options) for name, task in tasks.items()},
        "groups": group_blocks(tasks, options.groups),
    }


def _task(task: JoinedTask, options: ReportOptions) -> dict[str, Any]:
    sums = TaskSums(task, options.draws, options.seed)
    together = _block(sums, task.seeds)
    one = len(task.seeds) == 1
    by_seed = {str(s): together if one else _block(sums, (s,)) for s in task.seeds}
    hidden = options.text == "none"
    columns = slices_without_texts(options.slices) if hidden else options.slices
    sliced = Sliced([], None, {})
    if task.n:
        sliced = slice_blocks(task, columns, options.min_slice)
    block = {
        "n": task.n,
        "unscored": task.unscored,
        "metric": task.metric,
        "continuous": task.continuous,
        "common_only": task.common_only,
        "comparability": [asdict(difference) for difference in task.differences],
        "excluded": excluded_block(task),
        "outcomes": outcome_block(task, hidden),
        "near_ties": near_tie_block(task),
        "chance": {"score": chance_score(task)},
        **together,
        "by_seed": by_seed,
        "slices": sliced.blocks,
        "slices_note": sliced.note,
        "slices_rare": sliced.rare,
    }
    return without_texts(block) if hidden else block


def _block(sums: TaskSums, seeds: Seeds) -> dict[str, Any]:
    """versions, pairs, reduction and noise floor of some seeds together."""
    task = sums.task
    return {
        "versions": {v: version_block(sums, seeds, v) for v in task.versions},
        "pairs": {f"{p[0]}->{p[1]}": pair_block(sums, seeds, p) for p in task.pairs},
        "reduction": reduction_block(sums, seeds),
        "noise_floor": floor_block(sums, seeds),
    }
