"""What answer-level distillation adds: teachers of folds, candidates, scores.

Said of the approximations: a fold's adapter trains (K - 1) / K of an epoch's tokens and
validates on the whole split; what models are still to write is reckoned with at its longest
(`muscle.planning.distilled`).
"""

from dataclasses import replace

from muscle.compatibility_config import inputs_text
from muscle.config import ResourcesConfig
from muscle.losses.needs import needed_teachers
from muscle.planning.distilled import Distilled
from muscle.planning.facts import Facts
from muscle.planning.steps import StepEstimate, asking, identity_of, signals_of
from muscle.types import BOTH, Version


def pairs_of(facts: Facts) -> int:
    """How many different pairs of old and new the runs have."""
    experiment = facts.experiment
    return len({tuple(identity_of(experiment, v, run) for v in BOTH) for run in experiment.runs})


def scores_of(facts: Facts, teacher: Version) -> int:
    """How often a teacher scores all answers: for each of its adapters, or of its folds', and of
    written answers for each pair that wrote them."""
    experiment = facts.experiment
    if facts.distilled is not None and facts.distilled.writing:
        return pairs_of(facts)
    if experiment.compatibility.folds:
        return len({run[0] for run in experiment.runs})
    return signals_of(experiment, teacher)


def score_bytes(facts: Facts, distilled: Distilled) -> int:
    """All teachers' scores on disk."""
    needs = needed_teachers(facts.experiment.compatibility)
    return sum(scores_of(facts, teacher) * distilled.score_bytes for teacher in needs)


def fold_steps(facts: Facts, training: StepEstimate, teacher: Version) -> list[StepEstimate]:
    """The adapters that only teach, of one teacher; `training` is one of its own on all."""
    experiment = facts.experiment
    folds = experiment.compatibility.folds
    if not folds:
        return []
    count = folds * len({run[0] for run in experiment.runs})
    times = count * (folds - 1) / folds
    return [
        replace(
            training,
            label=f"train {teacher}'s folds",
            count=count,
            tokens=round(times * training.tokens),
            flops=times * training.flops,
            hours=times * training.hours,
            dollars=None if training.dollars is None else times * training.dollars,
        )
    ]


def asking_steps(
    facts: Facts, resources: ResourcesConfig, distilled: Distilled
) -> list[StepEstimate]:
    """Writing candidates, where a task gives no answers, and scoring all of them."""
    experiment = facts.experiment
    steps = []
    for version in BOTH:
        if version in distilled.writing:
            wing, count = facts.wing(version), signals_of(experiment, version)
            what = ("cache", f"{version} writes")
            asked = distilled.writing[version]
            steps.append(asking(facts, resources, wing, asked, what, count, count))
    for teacher in needed_teachers(experiment.compatibility):
        wing, count = facts.wing(teacher), scores_of(facts, teacher)
        adapters = signals_of(experiment, teacher) * (1 + (experiment.compatibility.folds or 0))
        what = ("cache", f"{teacher} scores")
        asked = distilled.scoring[teacher]
        steps.append(asking(facts, resources, wing, asked, what, count, adapters))
    return steps


def distilled_notes(facts: Facts, distilled: Distilled) -> list[str]:
    """What a user should know of the inputs, and of what was reckoned with."""
    settings, train = facts.experiment.compatibility, distilled.train
    answers = sum(train.answers)
    notes = [
        *distilled.notes,
        f"an epoch of compat is {len(train)} inputs ({inputs_text(settings.inputs)}) with "
        f"{answers} answers",
    ]
    if train.cut:
        notes.append(
            f"train compat: {train.cut} of {len(train)} inputs are longer than "
            "training.max_length and lose their beginning"
        )
    if not distilled.masks:
        notes.append("train compat: new isn't known to take a tree, so each answer runs alone")
    if distilled.writing:
        notes.append(
            "candidate answers are still to be written: reckoned with the right one and, of each "
            f"model, a greedy one and {settings.samples} drawn, all different and as long as a "
            "right answer"
        )
    return notes
