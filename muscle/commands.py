"""What the commands do, once parsed: the seam between the terminal and the rooms."""

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from rich.console import Console
from rich.markup import escape
from rich.syntax import Syntax
from rich.table import Table

from muscle.answering import teaching_of
from muscle.artifacts import Store, open_store
from muscle.compatibility_config import at_level
from muscle.config import BackendName, Experiment, ResourcesConfig
from muscle.display import ProgressDisplay
from muscle.errors import UserError
from muscle.evaluate import (
    Evaluated,
    Evaluating,
    EvaluationPlan,
    check_evaluation_output,
    plan_evaluation,
    served_evaluator,
)
from muscle.experiment import build_evaluation, load_experiment
from muscle.fleet.settings import is_fleet, load_fleet
from muscle.pipeline import Pipeline, check_output
from muscle.plan import Plan, Step, make_plan
from muscle.predict import Evaluator
from muscle.report import print_examples, print_scores, print_table
from muscle.report.text import one_line
from muscle.results import Outcome, check_gate
from muscle.training.settings import check_settings

if TYPE_CHECKING:
    from muscle.fleet.running import FleetRun
    from muscle.launch.ray_launcher import RayLauncher
    from muscle.search import SearchPlan

# Libraries' notices to other libraries; nothing a user could mend.
warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft|torch)\b")

NO_ROOM = 3
"""Exit code of a plan with a step that doesn't fit, and of a search without a feasible trial."""


def checked_experiment(file: Path, overrides: Sequence[str]) -> Experiment:
    """The experiment of a file, refused where it would fail minutes later.

    Raises:
        UserError: whatever a user can mend.
    """
    experiment = load_experiment(file, overrides)
    check_settings(experiment)
    return experiment


def run_experiment(
    file: Path,
    overrides: Sequence[str],
    output: str | None,
    dry_run: bool,
    address: str | None,
    debug: bool,
) -> int:
    """`muscle run`: plan, then run or show what would run.

    Returns the exit code: 0, or a fleet's.

    Raises:
        UserError: whatever a user can mend.
    """
    if is_fleet(file, overrides):
        return run_fleet(file, overrides, output, dry_run, address, debug)
    experiment = checked_experiment(file, overrides)
    output = output or f"runs/{experiment.name}"
    check_output(experiment, output)
    check_gate(experiment)
    console = Console()
    with console.status("reading task, data and models"):
        plan = make_plan(experiment)
    show_notes(plan.notes, console)
    if dry_run:
        show_plan(plan, output, console)
        return 0
    backend = experiment.evaluation.backend
    with ray_launcher(experiment.resources, address, debug, backend) as launcher:
        with ProgressDisplay(console) as display:
            outcome = Pipeline(plan, output, launcher, display).run()
    show_outcome(outcome, console)
    return 0


def run_fleet(
    file: Path,
    overrides: Sequence[str],
    output: str | None,
    dry_run: bool,
    address: str | None,
    debug: bool,
) -> int:
    """`muscle run` with a fleet's file.

    Returns the exit code: 0, every adapter can move; 1, one stays or failed; 3, of one not
    enough is known.

    Raises:
        UserError: whatever a user can mend in the file, or no adapter that can be resolved.
    """
    from muscle.fleet.running import FleetRun
    from muscle.report.fleet import print_fleet

    fleet = load_fleet(file, overrides)
    output = output or f"runs/{fleet.name}"
    console = Console()
    backend = fleet.entries[0].experiment.evaluation.backend
    with ray_launcher(fleet.resources, address, debug, backend) as launcher:
        with ProgressDisplay(console) as display:
            run = FleetRun(fleet, output, launcher, display)
            run.resolve()
            decided = None if dry_run else run.run()
    show_notes(run.remarks(), console)
    if decided is None:
        show_fleet(run, output, console)
        return 0
    show_notes(decided.notes, console)
    print_fleet(decided.record, console)
    for path in decided.paths:
        console.print(path, highlight=False, markup=False, soft_wrap=True)
    return decided.exit_code


def show_fleet(run: "FleetRun", output: str, console: Console) -> None:
    """Print for every adapter of a fleet what would run."""
    table = Table("adapter", "task", "to train", "to ask", title="what is missing")
    for name, task, trainings, asked in run.missing():
        table.add_row(*(escape(one_line(cell, 200)) for cell in (name, task, trainings, asked)))
    console.print(table)
    console.print("compat adapters: where the gate fails for new, or always, as each entry says")
    console.print(f"results would go to {output}", highlight=False, markup=False)


def evaluate_models(
    settings: dict[str, Any],
    overrides: Sequence[str],
    output: str,
    dry_run: bool,
    address: str | None,
    debug: bool,
) -> None:
    """`muscle evaluate`: plan, then ask or show what would be asked.

    Raises:
        UserError: whatever a user can mend.
    """
    config = build_evaluation(settings, overrides)
    console = Console()
    with console.status("reading tasks, data and models"):
        plan = plan_evaluation(config)
    check_evaluation_output(plan, output)
    if dry_run:
        show_steps("evaluation", plan.steps(), open_store(config.storage, output), console)
        return
    with evaluator(plan, address, debug) as launcher:
        with ProgressDisplay(console) as display:
            done = Evaluating(plan, output, launcher, display).run()
    show_evaluated(done, console)


@contextmanager
def evaluator(plan: EvaluationPlan, address: str | None, debug: bool) -> Iterator[Evaluator]:
    """Who asks a plan's models: Ray's pools, or this process where servers have the models.

    Raises:
        UserError: a task that no server answers; nothing listens at the address.
    """
    config = plan.config
    if config.evaluation.backend == "openai":
        if address is not None:
            raise UserError("--address names a Ray cluster, and backend 'openai' uses none")
        yield served_evaluator(plan)
        return
    writes = any(task.generates for task in plan.tasks.values())
    backend = config.evaluation.backend if writes else "transformers"
    with ray_launcher(config.resources, address, debug, backend) as launcher:
        yield launcher


def tune_experiment(
    file: Path,
    overrides: Sequence[str],
    output: str | None,
    dry_run: bool,
    address: str | None,
    debug: bool,
) -> int:
    """`muscle tune`: plan, then search or show what would be searched.

    Returns the exit code: 0, or `NO_ROOM` where no trial is feasible.

    Raises:
        UserError: whatever a user can mend.
    """
    from muscle.report.tuning import print_found
    from muscle.search import check_search, plan_search
    from muscle.tune import Search

    experiment = checked_experiment(file, overrides)
    output = output or f"runs/{experiment.name}-tune"
    console = Console()
    with console.status("reading task, data and models"):
        plan = plan_search(experiment)
    check_search(plan, output)
    show_notes(plan.notes, console)
    if dry_run:
        show_search(plan, output, console)
        return 0
    backend = experiment.evaluation.backend
    with ray_launcher(experiment.resources, address, debug, backend) as launcher:
        with ProgressDisplay(console) as display:
            searched = Search(plan, output, launcher, display).run()
    print_found(searched.found, console)
    for path in (searched.tables, searched.front, searched.tune_json, searched.best):
        if path is not None:
            console.print(path, highlight=False, markup=False, soft_wrap=True)
    return 0 if searched.best is not None else NO_ROOM


def show_search(plan: "SearchPlan", output: str, console: Console) -> None:
    """Print what a search would vary, on what, and how far an earlier start came."""
    from muscle.trials import read_trials, trials_of

    experiment, parts = plan.plan.experiment, plan.parts
    table = Table("parameter", "values", title=f"search of {experiment.name}")
    for name, values in plan.space.to_json().items():
        table.add_row(name, escape(json.dumps(values)))
    console.print(table)
    done = sum(t.done for t in read_trials(trials_of(output)))
    steps = [step for step in plan.plan.steps() if step.kind in ("examples", "task-adapter")]
    show_steps(experiment.name, steps, open_store(experiment.storage, output), console)
    for line in (
        f"half A: {parts.a.n} examples, half B: {parts.b.n}, of the training split",
        f"trials: {experiment.tuning.trials}, of which {done} are done",
        f"feasible: score at most {100 * experiment.tuning.epsilon:g} points below new's",
        f"results would go to {output}",
    ):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def plan_costs(file: Path, overrides: Sequence[str], output: str | None, as_json: bool) -> int:
    """`muscle plan`: reckon and print; returns the exit code, 0 when all fits, else `NO_ROOM`.

    Raises:
        UserError: whatever a user can mend.
    """
    from muscle.planning.view import plan_experiment, print_plan, to_json

    experiment = checked_experiment(file, overrides)
    output = output or f"runs/{experiment.name}"
    console = Console()
    if as_json:
        plan = plan_experiment(experiment, output)
        print(json.dumps(to_json(plan), indent=1))
    else:
        with console.status("reading task, data and models"):
            plan = plan_experiment(experiment, output)
        print_plan(plan, console)
    return 0 if plan.fits else NO_ROOM


@contextmanager
def ray_launcher(
    resources: ResourcesConfig, address: str | None, debug: bool, backend: BackendName
) -> "Iterator[RayLauncher]":
    """A launcher for a cluster or this machine, closed at the end.

    Raises:
        UserError: nothing listens at the address.
    """
    from muscle.launch.cluster import check_reachable
    from muscle.launch.ray_launcher import RayLauncher

    check_reachable(address)
    launcher = RayLauncher(resources, address, debug, backend)
    try:
        yield launcher
    finally:
        launcher.close()


def show_plan(plan: Plan, output: str, console: Console) -> None:
    """Print the resolved experiment and, for every step, whether it would run."""
    values = plan.experiment.model_dump()
    values["compatibility"] = at_level(values["compatibility"])
    settings = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    console.print(Syntax(settings, "yaml", background_color="default", word_wrap=True))
    store = open_store(plan.experiment.storage, output)
    teaching = teaching_of(plan, store)
    show_steps(plan.experiment.name, [*plan.steps(), *teaching.steps()], store, console)
    if teaching.untrained and (plan.teachers or (plan.answers and plan.answers.scores)):
        way = "cached" if teaching.choice.cached else "online"
        show_notes([f"teachers {way}: {teaching.choice.reason}"], console)
    console.print(f"results would go to {output}", highlight=False, markup=False)


def show_steps(name: str, steps: Sequence[Step], store: Store, console: Console) -> None:
    """Print for every step whether it would run."""
    table = Table("step", "artifact", "state", title=f"steps of {name}")
    for step in steps:
        there = store.find(step.kind, step.key) is not None
        table.add_row(step.label, f"{step.kind}/{step.key}", "reuse" if there else "run")
    console.print(table)


def show_evaluated(done: Evaluated, console: Console) -> None:
    """Print the scores, remarks, why answers are unscored, and the path.

    Raises:
        UserError: not one example of a task could be scored for a model.
    """
    print_scores(done.result, console)
    show_notes(done.notes, console)
    without = []
    for name, version in done.result["versions"].items():
        for task, found in version["tasks"].items():
            for error in found["errors"][:3]:
                ids = ", ".join(error["ids"]) + (", …" if error["n"] > len(error["ids"]) else "")
                text = f"unscored: {name}, {task}: {error['n']} answers ({one_line(ids, 80)}): "
                _warn(text + one_line(error["reason"]), console)
            if found["errors"] and not found["n"]:
                without.append(f"{task} of {name}: {one_line(found['errors'][0]['reason'])}")
    console.print(done.path, highlight=False, markup=False, soft_wrap=True)
    if without:
        more = f" (and {len(without) - 1} more)" if len(without) > 1 else ""
        raise UserError(f"no example could be scored in {without[0]}{more}")


def show_errors(errors: Mapping[str, int], console: Console) -> None:
    """Print why answers are unscored, the five commonest reasons."""
    for reason, count in list(errors.items())[:5]:
        _warn(f"unscored: {count} answers: {one_line(reason)}", console)


def _warn(text: str, console: Console) -> None:
    console.print(text, style="yellow", highlight=False, markup=False, soft_wrap=True)


def show_notes(notes: Sequence[str], console: Console) -> None:
    """Print remarks, each on a line."""
    for note in notes:
        _warn(f"note: {one_line(note)}", console)


def show_outcome(outcome: Outcome, console: Console) -> None:
    """Print the table, one flip side by side, why answers are unscored, what the gate says, and
    the paths.

    Raises:
        UserError: not one example could be scored.
    """
    from muscle.gate import print_gate

    print_table(outcome.report, console)
    print_examples(outcome.examples[:1], console)
    show_notes(outcome.notes, console)
    show_errors(outcome.errors, console)
    if outcome.gate is not None:
        print_gate(outcome.gate, console)
    for path in outcome.paths:
        console.print(path, highlight=False, markup=False, soft_wrap=True)
    if outcome.errors and all(task["n"] == 0 for task in outcome.report["tasks"].values()):
        reason = next(iter(outcome.errors))
        raise UserError(f"no example could be scored in all versions: {one_line(reason)}")
