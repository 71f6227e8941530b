"""What the commands do, once parsed: the seam between the terminal and the rooms."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import yaml
from rich.console import Console
from rich.syntax import Syntax
from rich.table import Table

from muscle.display import ProgressDisplay
from muscle.errors import UserError
from muscle.experiment import load_experiment
from muscle.pipeline import Outcome, Pipeline, check_output, open_store
from muscle.plan import Plan, make_plan
from muscle.report import print_examples, print_table
from muscle.report.text import one_line
from muscle.training.settings import check_settings

# Libraries' notices to other libraries; nothing a user could mend.
warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft|torch)\b")


def run_experiment(
    file: Path,
    overrides: Sequence[str],
    output: str | None,
    dry_run: bool,
    address: str | None,
    debug: bool,
) -> None:
    """`muscle run`: plan, then run or show what would run.

    Raises:
        UserError: whatever a user can mend.
    """
    experiment = load_experiment(file, overrides)
    check_settings(experiment)
    output = output or f"runs/{experiment.name}"
    check_output(experiment, output)
    console = Console()
    with console.status("reading task, data and models"):
        plan = make_plan(experiment)
    for note in plan.notes:
        console.print(f"note: {note}", style="yellow", highlight=False, markup=False)
    if dry_run:
        show_plan(plan, output, console)
        return
    from muscle.launch.cluster import check_reachable
    from muscle.launch.ray_launcher import RayLauncher

    check_reachable(address)
    launcher = RayLauncher(experiment.resources, address, debug)
    try:
        with ProgressDisplay(console) as display:
            outcome = Pipeline(plan, output, launcher, display).run()
    finally:
        launcher.close()
    show_outcome(outcome, console)


def show_plan(plan: Plan, output: str, console: Console) -> None:
    """Print the resolved experiment and, for every step, whether it would run."""
    settings = yaml.safe_dump(plan.experiment.model_dump(), sort_keys=False, allow_unicode=True)
    console.print(Syntax(settings, "yaml", background_color="default", word_wrap=True))
    store = open_store(plan.experiment, output)
    table = Table("step", "artifact", "state", title=f"steps of {plan.experiment.name}")
    for step in plan.steps():
        there = store.find(step.kind, step.key) is not None
        table.add_row(step.label, f"{step.kind}/{step.key}", "reuse" if there else "run")
    console.print(table)
    console.print(f"results would go to {output}", highlight=False, markup=False)


def show_outcome(outcome: Outcome, console: Console) -> None:
    """Print the table, one flip side by side, why answers are unscored, and the paths.

    Raises:
        UserError: not one example could be scored.
    """
    print_table(outcome.report, console)
    print_examples(outcome.examples[:1], console)
    for reason, count in list(outcome.errors.items())[:5]:
        text = f"unscored: {count} answers: {one_line(reason)}"
        console.print(text, style="yellow", highlight=False, markup=False, soft_wrap=True)
    for path in (outcome.report_md, outcome.report_json):
        console.print(path, highlight=False, markup=False, soft_wrap=True)
    if outcome.errors and all(task["n"] == 0 for task in outcome.report["tasks"].values()):
        reason = next(iter(outcome.errors))
        raise UserError(f"no example could be scored in all versions: {one_line(reason)}")
