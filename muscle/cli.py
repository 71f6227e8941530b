"""The `muscle` command: parse, import late, call."""

import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer

from muscle.errors import UserError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Update the base model without breaking what already worked.",
)

Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback and Ray's logs.")]


def version(show: bool) -> None:
    """Print the version and stop."""
    if show:
        from muscle import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def muscle(
    show_version: Annotated[
        bool, typer.Option("--version", callback=version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Measure the negative flips of a model update, and train an adapter that removes them."""


@app.command()
def run(
    experiment: Annotated[Path, typer.Argument(help="The experiment, a YAML file.")],
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Change a setting, e.g. training.epochs=2."
        ),
    ] = None,
    output: Annotated[
        str | None, typer.Option(help="Where results go; default runs/NAME. Any fsspec path.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the resolved settings and steps, do nothing.")
    ] = False,
    address: Annotated[
        str | None, typer.Option(help="A Ray cluster; default RAY_ADDRESS, else this machine.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Train old, new and compat, evaluate all three, write the regression report.

    Run it again to go on from where it stopped.
    """
    from muscle.commands import run_experiment

    try:
        run_experiment(experiment, set_ or [], output, dry_run, address, debug)
    except KeyboardInterrupt:
        print("muscle: stopped; run the same command again to go on", file=sys.stderr)
        raise typer.Exit(130) from None


def main(arguments: list[str] | None = None) -> None:
    """Run a command; an error that a user can mend is one line and exit code 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        app(args=arguments, prog_name="muscle")
    except UserError as error:
        if "--debug" in arguments:
            traceback.print_exc()
        print(f"muscle: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except OSError as error:  # a path that can't be read or written
        if "--debug" in arguments:
            traceback.print_exc()
        where = f"{error.filename}: " if error.filename else ""
        print(f"muscle: {where}{error.strerror or error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
