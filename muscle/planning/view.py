"""A plan as tables for a terminal and as one JSON object."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from muscle.config import Experiment
from muscle.metrics.power import DISCORDANT, smallest_difference
from muscle.planning.answers import distilled_notes
from muscle.planning.estimate import Reckoned, reckon, totals
from muscle.planning.facts import Facts, gather_facts
from muscle.planning.fitting import Advice, advise
from muscle.planning.hardware import Hardware
from muscle.planning.memory import MARGIN
from muscle.planning.steps import StepEstimate

GIB, MIB = 2**30, 2**20


@dataclass(frozen=True)
class Plan:
    """Everything that `muscle plan` says."""

    name: str
    hardware: Hardware
    dtype: str
    reckoned: Reckoned
    advice: tuple[Advice, ...]
    examples: int
    difference: float
    training_tokens: int
    notes: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether every step fits."""
        return not self.advice


def plan_experiment(experiment: Experiment, output: str) -> Plan:
    """Reckon an experiment and, where something doesn't fit, what would make it fit.

    Raises:
        UserError: as `gather_facts`.
    """
    facts = gather_facts(experiment, output)
    reckoned = reckon(facts, experiment.resources)
    return Plan(
        name=experiment.name,
        hardware=facts.hardware,
        dtype=experiment.training.dtype,
        reckoned=reckoned,
        advice=tuple(advise(facts, reckoned)),
        examples=facts.examples,
        difference=smallest_difference(facts.examples),
        training_tokens=facts.training_budget(experiment.resources),
        notes=_notes(facts, reckoned),
    )


def _notes(facts: Facts, reckoned: Reckoned) -> tuple[str, ...]:
    notes = [f"{step.label}: {step.note}" for step in reckoned.steps if step.note]
    for wing in (facts.old, facts.new):
        if wing.train.truncated:
            notes.append(
                f"train {wing.name}: {wing.train.truncated} of {len(wing.train)} examples are "
                "longer than training.max_length and lose their beginning"
            )
    if facts.distilled is not None:
        notes += distilled_notes(facts, facts.distilled)
    cache = reckoned.cache
    if cache.choice.cached and cache.free is not None and cache.bytes > cache.free:
        notes.append(
            f"the cache needs {amount(cache.bytes, 'B')}, the disk has {amount(cache.free, 'B')} "
            "free: set storage to a larger one, or resources.teachers=online"
        )
    return tuple(notes)


def to_json(plan: Plan) -> dict[str, Any]:
    """The plan as JSON values: bytes, FLOPs, hours, dollars, fractions."""
    hardware = plan.hardware
    return {
        "experiment": plan.name,
        "fits": plan.fits,
        "hardware": {
            "name": hardware.name,
            "kind": hardware.kind,
            "memory_bytes": hardware.memory,
            "flops_per_second": hardware.rates[
                "float32" if plan.dtype == "float32" else "bfloat16"
            ],
            "measured": hardware.measured,
            "utilisation_assumed": hardware.utilisation,
            "price_per_hour": hardware.price,
        },
        "steps": [_step_json(step) for step in plan.reckoned.steps],
        "totals": dict(totals(plan.reckoned.steps)),
        "cache": {
            "bytes": plan.reckoned.cache.bytes,
            "signals": plan.reckoned.cache.signals,
            "passes": plan.reckoned.cache.passes,
            "disk_free_bytes": plan.reckoned.cache.free,
            "cached": plan.reckoned.cache.choice.cached,
            "reason": plan.reckoned.cache.choice.reason,
        },
        "examples": plan.examples,
        "smallest_nfr_difference": plan.difference,
        "advice": [asdict(found) for found in plan.advice],
        "notes": list(plan.notes),
    }


def _step_json(step: StepEstimate) -> dict[str, Any]:
    memory = {**asdict(step.memory), "total": step.memory.total}
    return {**asdict(step), "memory": memory, "fits": step.fits}


def print_plan(plan: Plan, console: Console) -> None:
    """Print steps, memory, and a line for each thing to know."""
    console.print(_line(f"plan of {plan.name}", "bold"))
    console.print(_line(_hardware_line(plan)))
    for table in (_steps_table(plan), _memory_table(plan.reckoned.steps, plan.hardware.kind)):
        console.print()
        console.print(table)
    console.print()
    for text in _lines(plan):
        console.print(_line(text), soft_wrap=True)
    for text in plan.notes:
        console.print(_line(f"note: {text}", "yellow"), soft_wrap=True)
    for found in plan.advice:
        console.print(_line(advice_line(found), "bold red"), soft_wrap=True)


def _line(text: str, style: str = "") -> Text:
    return Text(text, style=style)


def _hardware_line(plan: Plan) -> str:
    hardware = plan.hardware
    rate = hardware.rates[plan.dtype]
    source = "measured here" if hardware.measured else "data sheet or as given"
    return (
        f"{hardware.name}: {hardware.memory / GIB:.1f} GiB, {amount(rate, 'FLOP/s')} in "
        f"{plan.dtype} ({source}), of which {hardware.utilisation:.0%} is assumed to be reached"
    )


def _table(title: str, first: str, columns: Sequence[str]) -> Table:
    table = Table(
        title=title,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=0,
        collapse_padding=True,
    )
    table.add_column(first, no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _steps_table(plan: Plan) -> Table:
    priced = plan.hardware.price is not None
    place = "workers" if plan.hardware.kind == "cpu" else "GPUs"
    columns = ["runs", "base", "adapter", "tokens", "FLOPs", place, "time"]
    table = _table("steps, one after the other", "step", [*columns, *(["$"] if priced else [])])
    for step in plan.reckoned.steps:
        table.add_row(
            step.label,
            str(step.count),
            amount(step.parameters),
            amount(step.adapter),
            amount(step.tokens),
            amount(step.flops),
            str(step.gpus),
            duration(step.hours),
            *([f"{step.dollars:,.2f}"] if step.dollars is not None else []),
        )
    total = totals(plan.reckoned.steps)
    table.add_section()
    dollars = [f"{total['dollars']:,.2f}"] if priced else []
    table.add_row(
        "all", "", "", "", "", amount(total["flops"]), "", duration(total["hours"]), *dollars
    )
    return table


def _memory_table(steps: Sequence[StepEstimate], kind: str) -> Table:
    where = "GPU" if kind == "cuda" else "worker"
    columns = ("base", "LoRA", "optim.", "grad.", "activ.", "logits", "old", "rest")
    # Small models would be a table of zeros.
    unit, name = (GIB, "GiB") if max(s.memory.total for s in steps) > 2 * GIB else (MIB, "MiB")
    title = f"memory of one {where} in {name}; activations and logits peak apart"
    table = _table(title, "step", [*columns, "total", "room"])
    for step in steps:
        memory = step.memory
        parts = (
            memory.weights,
            memory.adapter,
            memory.optimizer,
            memory.gradients,
            memory.activations,
            memory.logits,
            memory.old_teacher,
            memory.buffers + memory.runtime,
        )
        cells = [figures(part / unit) for part in parts]
        total = Text(figures(memory.total / unit), style="" if step.fits else "bold red")
        table.add_row(step.label, *cells, total, figures(step.available / unit))
    return table


def _lines(plan: Plan) -> list[str]:
    cache = plan.reckoned.cache
    lines = []
    if cache.bytes:
        free = "" if cache.free is None else f" of {amount(cache.free, 'B')} free"
        state = "cached" if cache.choice.cached else "online"
        lines.append(
            f"teachers: {state} ({cache.choice.reason}); the cache takes "
            f"{amount(cache.bytes, 'B')}{free}"
        )
    host = max(step.memory.host for step in plan.reckoned.steps)
    if host:
        lines.append(f"host memory for what is offloaded: {gib(host)} GiB")
    lines.append(
        f"{plan.examples} examples show a change of NFR of {100 * plan.difference:.1f} points or "
        f"more (power 0.8, two-sided 0.05, {100 * DISCORDANT:.0f} % discordant)"
    )
    wanted = plan.reckoned.resources.gpus_per_worker
    if plan.hardware.kind == "cpu" and wanted not in ("auto", 0):
        lines.append(
            f"resources.gpus_per_worker asks for {wanted:g} and this machine has none: "
            "name the GPUs with hardware.gpu"
        )
    if plan.fits:
        lines.append(f"everything fits, with {1 - MARGIN:.0%} of the memory kept free")
    return lines


def advice_line(found: Advice) -> str:
    """What doesn't fit, and the settings that would mend it, with their number."""
    what = (
        f"does not fit: {', '.join(found.steps)}: {gib(found.needs)} GiB at most, "
        f"there is room for {gib(found.available)}"
    )
    if not found.settings:
        return (
            f"{what}: no setting tried is enough (least: {gib(found.then)} GiB): take larger GPUs"
        )
    settings = " ".join(
        f"--set resources.{name}={str(value).lower()}" for name, value in found.settings.items()
    )
    return f"{what}: {settings} → {gib(found.then)} GiB"


def gib(size: float) -> str:
    """Bytes as a number of GiB."""
    return figures(size / GIB)


def figures(value: float) -> str:
    """A number with one decimal, or without where it is large; a dash for nothing."""
    if value == 0:
        return "-"
    return f"{value:.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 0.05 else "<0.1"


def amount(value: float, unit: str = "") -> str:
    """A number with an SI prefix: 6.74 G, 1.2 PFLOP."""
    for prefix, size in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}".strip()


def duration(hours: float) -> str:
    """Hours as the unit that reads best."""
    if hours >= 48:
        return f"{hours / 24:.1f} d"
    if hours >= 1:
        return f"{hours:.1f} h"
    if hours >= 1 / 60:
        return f"{hours * 60:.1f} min"
    return f"{hours * 3600:.1f} s"
