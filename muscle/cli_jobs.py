"""`muscle submit` and `muscle jobs`: parse, import late, call."""

from pathlib import Path
from typing import Annotated

import typer

jobs = typer.Typer(no_args_is_help=True, help="Runs on a cluster: list them, read on, stop one.")

Server = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="The cluster's dashboard, http://HOST:8265; default RAY_API_SERVER_ADDRESS.",
    ),
]
Id = Annotated[str, typer.Argument(metavar="ID", help="A job's id, see `muscle jobs list`.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback.")]


def submit(
    experiment: Annotated[Path, typer.Argument(help="The experiment, a YAML file.")],
    address: Server = None,
    tune: Annotated[bool, typer.Option("--tune", help="As `muscle tune`.")] = False,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Change a setting, e.g. resources.max_actors=4."
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(help="Where results go, as the nodes call it; default STORAGE/runs/NAME."),
    ] = None,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Print the job's id and don't follow it.")
    ] = False,
    save: Annotated[
        str | None, typer.Option(help="Where the report is copied to; default runs/NAME.")
    ] = None,
    emit: Annotated[
        str | None,
        typer.Option(metavar="rayjob", help="Print a Kubernetes manifest instead (KubeRay)."),
    ] = None,
    template: Annotated[
        Path | None,
        typer.Option(help="Your copy of cluster/kuberay/rayjob-run.yaml, filled in."),
    ] = None,
    debug: Debug = False,
) -> None:
    """Run an experiment on a cluster: pack it, submit it, follow its log, bring the report back.

    Models and data lie where the nodes see them: hub ids, object storage, shared disks.

    Ctrl-C leaves the job running. The same command follows it again or, once it has
    ended, submits it again to go on from where it was. Exit code: the run's own.
    """
    from muscle import submitting

    if emit is not None or template is not None:
        submitting.only_emits({"--address": address, "--no-wait": no_wait, "--save": save})
        submitting.emit(experiment, tune, set_ or [], output, emit, template)
        return
    with submitting.reaching():
        code = submitting.submit(experiment, address, tune, set_ or [], output, no_wait, save)
    raise typer.Exit(code)


@jobs.command("list")
def list_jobs(
    address: Server = None,
    json_: Annotated[bool, typer.Option("--json", help="Print a JSON list instead.")] = False,
    debug: Debug = False,
) -> None:
    """The jobs that `muscle submit` made, the latest first."""
    from muscle import submitting

    with submitting.reaching():
        submitting.show_jobs(address, json_)


@jobs.command()
def logs(
    id_: Id,
    address: Server = None,
    follow: Annotated[bool, typer.Option(help="Wait for more until the job ends.")] = True,
    debug: Debug = False,
) -> None:
    """Print a job's log, and what comes. Exit code: 0, or the followed job's own."""
    from muscle import submitting

    with submitting.reaching():
        code = submitting.show_log(id_, address, follow)
    raise typer.Exit(code)


@jobs.command()
def stop(id_: Id, address: Server = None, debug: Debug = False) -> None:
    """Stop a job and wait until it has. Submitted again, its run goes on from there."""
    from muscle import submitting

    with submitting.reaching():
        submitting.stop_job(id_, address)
