"""A search before it starts: resolved, and checked against what can't work."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from muscle import storage
from muscle.answers import settled
from muscle.bases import check_tokenizers
from muscle.bench import Parts, tuning_parts
from muscle.compatibility_config import recorded
from muscle.config import TUNING_FRACTION, CompatibilityConfig, Experiment
from muscle.errors import UserError
from muscle.metrics.power import needed_examples, smallest_difference
from muscle.pipeline import first_difference, numbers
from muscle.plan import Plan, make_plan, vary
from muscle.splits import training_split
from muscle.tasks import load_task
from muscle.tuning.space import Space, make_space

READS = "what it reads"
"""Of an identity; the last by name: of what differs, a setting is told first."""


REFERENCES = {
    "default": CompatibilityConfig(level="token"),
    "always-old": CompatibilityConfig(level="token", mask="always-old"),
}
"""What a chosen trial is compared with, besides the control: the paper's method as published,
and plain distillation from the old model."""


@dataclass(frozen=True)
class SearchPlan:
    """A search, resolved: the update, the tuning examples, what is varied.

    references  what the chosen trial is compared with; none where old and new have different
                tokenizers
    """

    plan: Plan
    parts: Parts
    space: Space
    notes: tuple[str, ...]
    references: Mapping[str, CompatibilityConfig]

    @property
    def taught(self) -> list[CompatibilityConfig]:
        """Settings that between them read all that teachers leave for the trials."""
        return self.space.taught(self.plan.experiment)


def control_of(plan: Plan, chosen: CompatibilityConfig) -> CompatibilityConfig:
    """As many updates on labels alone: what more training by itself would do.

    Of whole answers too it is trained on the labels' tokens, as the task adapters are; in whole
    epochs, the nearest number of updates.
    """
    if not chosen.by_choice:
        return chosen.model_copy(update={"ce_weight": 1.0, "interpolation": 1.0})
    varied = vary(plan, chosen)
    assert varied.answers is not None
    labelled, _ = varied.split_of("new")
    times = len(varied.answers.asked.new.train) / len(labelled)
    epochs = varied.experiment.compat_training.epochs
    return CompatibilityConfig(
        level="token",
        ce_weight=1.0,
        learning_rate=chosen.learning_rate,
        warmup_steps=chosen.warmup_steps,
        epochs=max(1, round(epochs * times)) if times != 1 else chosen.epochs,
    )


def plan_search(experiment: Experiment) -> SearchPlan:
    """Resolve a search: models, data, halves, space.

    Raises:
        UserError: whatever is wrong with those; halves too small for `tuning.difference`.
    """
    task = load_task(experiment.task)
    experiment = settled(experiment, task)
    space = make_space(experiment)
    if experiment.training.tuning_fraction is None:
        training = experiment.training.model_copy(update={"tuning_fraction": TUNING_FRACTION})
        experiment = experiment.model_copy(update={"training": training})
    tokens = "token" in space.levels(experiment)
    # With settings that read both teachers, so that two tokenizers are refused.
    reading = CompatibilityConfig(level="token" if tokens else "choice")
    both = experiment.model_copy(update={"compatibility": reading})
    plan = vary(make_plan(both, task), experiment.compatibility)
    parts = tuning_parts(plan)
    _check_halves(experiment, parts)
    train, validation = training_split(experiment, plan.task)
    notes = [
        *plan.notes,
        f"{len(train)} examples train, {len(validation)} choose epochs, {parts.a.n} (half A) and "
        f"{parts.b.n} (half B) compare trials",
    ]
    given = [name for name in ("old", "new") if getattr(experiment, name).adapter is not None]
    if given:
        notes.append(
            f"{' and '.join(given)} bring adapters: if those were trained on the tuning examples "
            "too, the search sees fewer flips than there are"
        )
    references, why = (REFERENCES, None) if tokens else _references(experiment)
    notes += [why] if why is not None else []
    return SearchPlan(plan, parts, space, tuple(notes), references)


def _references(
    experiment: Experiment,
) -> tuple[Mapping[str, CompatibilityConfig], str | None]:
    """What can be trained to compare with a choice of level choice, and why the rest can't."""
    token = experiment.model_copy(update={"compatibility": REFERENCES["default"]})
    try:
        check_tokenizers(token)
    except UserError as error:
        names = " and ".join(REFERENCES)
        return {}, f"the test split will be without {names}: {error}"
    return REFERENCES, None


def check_search(plan: SearchPlan, output: str) -> None:
    """Refuse an output folder that isn't free for this search; writes nothing.

    Raises:
        UserError: it is a file, or holds the search of another experiment.
    """
    storage.check_folders(output, plan.plan.experiment.storage)
    there = storage.read_json(storage.join(output, "search.json"))
    if there is None:
        if storage.exists(storage.join(output, "report.json")):
            raise UserError(f"{output} holds the report of a run: choose another --output")
        return
    difference = first_difference(_today(there), identity(plan))
    if difference is not None:
        raise UserError(
            f"{output} holds the search of another experiment ({difference}): choose another "
            "--output, or share finished steps with the setting 'storage'"
        )


def identity(plan: SearchPlan) -> dict[str, Any]:
    """What makes a search this one: all but where it runs and how long it goes on.

    Fingerprints are among it, since trials that were measured on other data, or on models that
    have changed in their place, can't be compared with new ones.
    """
    made = plan.plan
    written = made.answers.questions.values() if made.answers and made.answers.candidates else ()
    return {
        **_settings(made.experiment),
        READS: {
            # How candidates are scored has changed once.
            **({"candidate answers": [q.new.key for q in written]} if written else {}),
            "training examples": made.examples.key,
            "tuning examples": [plan.parts.a.asked.new.key, plan.parts.b.asked.new.key],
            "test split": made.queries.key,
            "old": [made.old.fingerprint, made.old.given_adapter],
            "new": [made.new.fingerprint, made.new.given_adapter],
        },
    }


def _settings(experiment: Experiment) -> dict[str, Any]:
    elsewhere = {"trials", "concurrent", "difference"}
    tuning = experiment.tuning.model_dump(mode="json", exclude=elsewhere)
    return {**numbers(experiment), "tuning": tuning}


def _today(there: Any) -> Any:
    """What an earlier version of ours wrote, with the settings that came since."""
    try:
        settings = {name: value for name, value in there.items() if name != READS}
        return {**_settings(Experiment.model_validate(recorded(settings))), READS: there.get(READS)}
    except (AttributeError, ValidationError):
        return there


def _check_halves(experiment: Experiment, parts: Parts) -> None:
    n = min(parts.a.n, parts.b.n)
    wanted, shown = experiment.tuning.difference, smallest_difference(n)
    if shown <= wanted:
        return
    raise UserError(
        f"each half of the tuning examples has {n}, which can show a difference of "
        f"{100 * shown:.1f} points of NFR at best; setting 'tuning.difference' wants "
        f"{100 * wanted:g} points, which takes {needed_examples(wanted)}: raise "
        "training.tuning_fraction or training.limit, or be content with a larger difference"
    )
