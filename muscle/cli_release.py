"""`muscle check-adapter` and `muscle release`: parse, import late, call."""

import json
from typing import Annotated

import typer


def also_override(also: list[str] | None) -> list[str]:
    """`--also` as an override of the setting of that name, so that a rerun is told the same."""
    return [f"also={json.dumps(also)}"] if also else []


Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback.")]


def check_adapter(
    adapter: Annotated[str, typer.Argument(metavar="DIR", help="A PEFT adapter's folder.")],
    max_lora_rank: Annotated[
        int | None,
        typer.Option(help="What the server was started with; default: as large as need be."),
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="The model it will be served on; default: not checked.")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")] = False,
    debug: Debug = False,
) -> None:
    """Say whether an adapter serves in vLLM, before anyone deploys it.

    Reads its config, the header of its safetensors and looks for NaN; no model is loaded. Exit
    code 0: it serves; 1: it doesn't, or not as it was trained; 2: wrong usage.
    """
    from muscle.release import check_serving
    from muscle.release.show import print_serving
    from muscle.report.console import SteadyConsole

    found = check_serving(adapter, max_lora_rank, base)
    console = SteadyConsole()
    if json_:
        text = json.dumps({"adapter": adapter, **found.json()}, indent=2)
        console.print(text, highlight=False, markup=False, soft_wrap=True)
    else:
        print_serving(found, console)
    raise typer.Exit(0 if found.serves else 1)


def release(
    output: Annotated[str, typer.Argument(help="The output folder of a finished run.")],
    version: Annotated[
        str | None,
        typer.Option(help="new or compat; default: compat if its gate passes, else new."),
    ] = None,
    output_: Annotated[
        str | None,
        typer.Option("--output", metavar="FILE", help="Default: OUTPUT/release.json."),
    ] = None,
    previous: Annotated[
        str | None,
        typer.Option(
            metavar="RELEASE.json", help="What is served now; default: the run's old, as it was."
        ),
    ] = None,
    adapter_path: Annotated[
        str | None,
        typer.Option(metavar="URI", help="Where the adapter is served from; default: OUTPUT."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of the run to release, where there are several.")
    ] = None,
    allow_failed_gate: Annotated[
        str | None,
        typer.Option(metavar="REASON", help="Release it all the same; REASON is written down."),
    ] = None,
    debug: Debug = False,
) -> None:
    """Write release.json: what is served after an update, how it was judged, what was before.

    Prints vLLM's arguments for it and for going back. Exit code 0: released; 1: the gate didn't
    pass, or vLLM doesn't serve the adapter; 2: wrong usage, or files that don't belong together.
    """
    from muscle.release.judged import RefusedError
    from muscle.release.make import Request, make_release
    from muscle.release.show import print_release
    from muscle.report.console import SteadyConsole, complain

    asked = Request(output, version, output_, previous, adapter_path, allow_failed_gate, seed)
    try:
        released = make_release(asked)
    except RefusedError as refused:
        complain(str(refused), debug)
        raise typer.Exit(1) from None
    print_release(released, SteadyConsole())
