"""`muscle plan`, once parsed."""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from muscle.experiment import load_experiment
from muscle.planning.view import plan_experiment, print_plan, to_json
from muscle.training.settings import check_settings

# Libraries' notices to other libraries; nothing a user could mend.
warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft|torch)\b")

NO_ROOM = 3
"""Exit code when a step doesn't fit."""


def show(file: Path, overrides: Sequence[str], output: str | None, as_json: bool) -> int:
    """Reckon an experiment and print it; returns the exit code: 0 when all fits, else 3.

    Raises:
        UserError: whatever a user can mend.
    """
    experiment = load_experiment(file, overrides)
    check_settings(experiment)
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
