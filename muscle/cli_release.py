"""`muscle check-adapter` and `muscle release`: parse, import late, call."""

import json
from typing import Annotated

import typer

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
