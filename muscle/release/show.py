"""What a check of an adapter found, and what a release is, on the console."""

from rich.console import Console

from muscle.release.serving import Serving
from muscle.release.vllm import notes, serve_command
from muscle.released import Released, Serves
from muscle.report.table import literal
from muscle.report.text import one_line, percent, plain

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


def print_release(released: Released, console: Console) -> None:
    """What was released, and vLLM's arguments for it and for going back, to be copied."""
    record = released.record
    gate = "no gate" if record.gate is None else f"gate: {record.gate['verdict']}"
    what = f"{record.name}: {record.version} of {', '.join(record.tasks)} on {record.base.model}"
    _say(f"{what}, {gate}", console)
    for task, numbers in record.scores.items():
        flips = numbers["flips"]
        if flips["nfr"] is not None:
            before, after = (numbers["scores"][v] for v in ("old", record.version))
            text = f"NFR {percent(flips['nfr'])} %, score {percent(before)} -> {percent(after)} %"
            _say(f"{task}: {text}", console)
    if record.allowed is not None:
        broken = "; ".join(record.allowed.what)
        _say(f"allowed all the same: {broken}; because: {record.allowed.reason}", console, "yellow")
    for waiver in record.waivers:
        reason = f"{waiver['id']}, until {waiver['until']}: {waiver['reason']}"
        _say(f"waived: {reason}", console, "yellow")
    here = _here(released, record)
    for text in notes(here, record.engine):
        _say(f"note: {text}", console, "yellow")
    _say("serve it:", console)
    _copy(serve_command(here, record.name, record.engine.dtype), console)
    _say("go back:", console)
    back = _here(released, record.previous)
    _copy(serve_command(back, record.name, record.engine.dtype), console)
    _say(f"written: {released.path}", console)


def _here(released: Released, what: Serves) -> Serves:
    """With paths as this machine calls them."""
    adapter = what.adapter.model_copy(update={"path": released.place(what.adapter.path)})
    template = what.chat_template
    if template is not None and template.file is not None:
        template = template.model_copy(update={"file": released.place(template.file)})
    return Serves(base=what.base, adapter=adapter, chat_template=template)


def _say(text: str, console: Console, style: str = "") -> None:
    console.print(literal(one_line(text, 600), console, style), soft_wrap=True)


def _copy(command: str, console: Console) -> None:
    """A command as it has to be typed: neither cut nor wrapped, nothing in it markup."""
    console.print(f"  {plain(command)}", markup=False, highlight=False, soft_wrap=True, emoji=False)
