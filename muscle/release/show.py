"""What a check of an adapter found, on the console."""

from rich.console import Console

from muscle.release.serving import Serving
from muscle.report.table import literal
from muscle.report.text import one_line

STYLES = {"ok": "green", "warning": "yellow", "fails": "bold red"}


def print_serving(serving: Serving, console: Console) -> None:
    """A line for each finding, the worst first, then whether the adapter serves."""
    for finding in serving.findings:
        mend = f": {finding.mend}" if finding.mend else ""
        text = one_line(f"{finding.what}: {finding.text}{mend}", 600)
        level = literal(f"{finding.level:7}", console, STYLES[finding.level])
        console.print(level, literal(text, console), soft_wrap=True)
    name = one_line(serving.adapter, 200)
    if not serving.serves:
        said = f"{name} does not serve in vLLM"
    else:
        said = f"{name} serves in vLLM with --max-lora-rank {serving.max_lora_rank}"
    console.print(literal(said, console), soft_wrap=True)
