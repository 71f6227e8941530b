"""The `muscle` command: parse, import late, call."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from muscle.cli_flags import (
    Again,
    Also,
    Column,
    Common,
    Excess,
    Filter,
    Gain,
    Groups,
    Id,
    MustKeep,
    Nfr,
    Only,
    Pair,
    Relative,
    Slices,
    Texts,
    Waive,
)
from muscle.cli_jobs import jobs, submit
from muscle.cli_release import check_adapter, release
from muscle.errors import UserError

VERDICTS = {"gate", "compare", "check-adapter", "release"}
"""Commands whose exit code is a verdict: Python's own 1 for a traceback would read "fail"."""
OUR_FAILURE = 70
UNREAD = 74
"""Nobody read what a command printed, so that it stopped without a verdict (EX_IOERR)."""

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Update the base model without breaking what already worked.",
)

Tasks = Annotated[
    list[str],
    typer.Option(
        help="A lm-evaluation-harness task or group (several: repeat, or separate with "
        "commas), or a YAML file with a task's settings."
    ),
]
Models = Annotated[
    list[str],
    typer.Option(
        metavar="NAME=BASE[+ADAPTER]",
        help="A model to ask and a name for it; BASE is a directory, a hub id (ID@REVISION) "
        "or testbed:v1. Repeat for several.",
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change a setting, e.g. resources.max_actors=4."
    ),
]
Address = Annotated[
    str | None, typer.Option(help="A Ray cluster; default RAY_ADDRESS, else this machine.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show the settings and steps, do nothing.")]
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
    experiment: Annotated[Path, typer.Argument(help="The experiment or the fleet, a YAML file.")],
    set_: Overrides = None,
    output: Annotated[
        str | None, typer.Option(help="Where results go; default runs/NAME. Any fsspec path.")
    ] = None,
    also: Also = None,
    dry_run: DryRun = False,
    address: Address = None,
    debug: Debug = False,
) -> None:
    """Train old, new and compat, evaluate all three, write the regression report.

    Run it again to go on from where it stopped. With a file of many adapters it decides for each
    whether it can move; exit code 0: all; 1: some stay or failed; 3: not enough evidence.
    """
    from muscle.cli_release import also_override
    from muscle.commands import run_experiment

    with stoppable():
        overrides = [*(set_ or []), *also_override(also)]
        code = run_experiment(experiment, overrides, output, dry_run, address, debug)
    raise typer.Exit(code)


@app.command()
def evaluate(
    task: Tasks,
    model: Models,
    output: Annotated[str, typer.Option(help="Where predictions go. Any fsspec path.")],
    include_path: Annotated[
        str | None, typer.Option(help="A folder of your own harness YAMLs.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first N examples of a task.")] = None,
    num_fewshot: Annotated[int | None, typer.Option(help="Few-shot examples in a prompt.")] = None,
    apply_chat_template: Annotated[
        bool, typer.Option("--apply-chat-template", help="Speak through the chat template.")
    ] = False,
    chat_template: Annotated[
        str | None,
        typer.Option(help="The same, with the template of this name; of chats: a Jinja file."),
    ] = None,
    system_instruction: Annotated[str | None, typer.Option(help="A system prompt.")] = None,
    fewshot_as_multiturn: Annotated[
        bool, typer.Option("--fewshot-as-multiturn", help="Few-shot examples as turns of a chat.")
    ] = False,
    backend: Annotated[
        str, typer.Option(help="What answers: transformers, continuous, vllm; openai: a server.")
    ] = "transformers",
    base_url: Annotated[
        list[str] | None, typer.Option(metavar="[NAME=]URL", help="Server of --backend openai.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    repeat: Annotated[
        int, typer.Option(help="Ask so often, and print what changes: the engine's own noise.")
    ] = 1,
    set_: Overrides = None,
    dry_run: DryRun = False,
    address: Address = None,
    debug: Debug = False,
) -> None:
    """Let any models answer any tasks: predictions, scores, and the harness's own numbers.

    Run it again to go on from where it stopped.
    """
    from muscle.commands import evaluate_models
    from muscle.experiment import given_settings, is_template_file

    settings = given_settings(task, model, include_path, num_fewshot, chat_template)
    named = None if is_template_file(chat_template) else chat_template
    settings["prompting"] = {
        "apply_chat_template": named or apply_chat_template,
        "system_instruction": system_instruction,
        "fewshot_as_multiturn": fewshot_as_multiturn,
    }
    settings["evaluation"] = {"limit": limit, "backend": backend, "dtype": dtype}
    settings["evaluation"]["server"] = {"base_url": base_url or []}
    settings["repeat"] = repeat
    with stoppable():
        evaluate_models(settings, set_ or [], output, dry_run, address, debug)


@app.command()
def tune(
    experiment: Annotated[Path, typer.Argument(help="The experiment, a YAML file.")],
    trials: Annotated[
        int | None, typer.Option(help="Settings tried; default tuning.trials, 24.")
    ] = None,
    pareto: Annotated[
        bool, typer.Option("--pareto", help="Search the front of (NFR, accuracy) instead.")
    ] = False,
    set_: Overrides = None,
    output: Annotated[
        str | None, typer.Option(help="Where results go; default runs/NAME-tune.")
    ] = None,
    dry_run: DryRun = False,
    address: Address = None,
    debug: Debug = False,
) -> None:
    """Search the settings with the fewest negative flips at (nearly) new's accuracy.

    Trials are compared on examples held out from training; the test split is read once, at the
    end. Run it again to go on from where it stopped. Exit code 0: best.yaml is there, for
    `muscle run`; 3: no trial was feasible; 2: wrong usage.
    """
    from muscle.commands import tune_experiment

    overrides = [*(set_ or [])]
    overrides += [f"tuning.trials={trials}"] if trials is not None else []
    overrides += ["tuning.pareto=true"] if pareto else []
    with stoppable():
        code = tune_experiment(experiment, overrides, output, dry_run, address, debug)
    raise typer.Exit(code)


@app.command()
def plan(
    experiment: Annotated[Path, typer.Argument(help="The experiment, a YAML file.")],
    set_: Overrides = None,
    output: Annotated[
        str | None, typer.Option(help="Where results would go; default runs/NAME.")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")] = False,
    debug: Debug = False,
) -> None:
    """Say what a run will need, before anything starts: memory, time, disk, dollars.

    Reads configs, tokenizers and the task, no weights. Exit code 0: every step fits; 3: one
    doesn't, and the settings that would make it fit are named; 2: wrong usage.
    """
    from muscle.commands import plan_costs

    with stoppable():
        code = plan_costs(experiment, set_ or [], output, json_)
    raise typer.Exit(code)


@app.command()
def compare(
    old: Annotated[str, typer.Argument(help="Old's predictions; or alone, a run's output folder.")],
    new: Annotated[str | None, typer.Argument(help="New's.")] = None,
    compat: Annotated[str | None, typer.Argument(help="New's, with the adapter.")] = None,
    *,
    output: Annotated[str, typer.Option(help="A folder for the report. Any fsspec path.")],
    noise_floor: Again = None,
    also: Also = None,
    task: Only = None,
    metric: Annotated[str | None, typer.Option(help="The metric that decides.")] = None,
    filter_: Filter = None,
    id_: Id = None,
    correct: Column = None,
    score: Column = None,
    answer: Column = None,
    gold: Column = None,
    question: Column = None,
    task_column: Column = None,
    slice_: Slices = None,
    min_slice: Annotated[int, typer.Option(min=1, help="Examples that a slice needs.")] = 50,
    group: Groups = None,
    common: Common = False,
    text: Texts = "page",
    draws: Annotated[
        int | None, typer.Option(min=1, help="Bootstrap draws; default 10,000.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="The bootstrap's seed.")] = None,
    max_nfr: Nfr = None,
    max_excess_nfr: Excess = None,
    max_relative_nfr: Relative = None,
    min_gain: Gain = None,
    must_keep: MustKeep = None,
    waive: Waive = None,
    pair: Pair = None,
    debug: Debug = False,
) -> None:
    """Compare predictions: the flips of an update, with a page to look at each of them.

    Takes what `muscle evaluate` wrote, sample logs of lm-evaluation-harness (--log_samples), or
    JSONL, Parquet or CSV with ids and scores. Several seeds: paths with commas between them. With
    limits it is also the gate. Exit code 0, or the gate's: 1 fail, 3 not enough evidence; 2:
    wrong usage.
    """
    given = {name.rstrip("_"): value for name, value in locals().items() if name != "debug"}
    from muscle.compare import compare_files

    with stoppable():
        code = compare_files(**given)
    raise typer.Exit(code)


@app.command()
def gate(
    report: Annotated[str, typer.Argument(help="A report.json, or the folder it is in.")],
    max_nfr: Nfr = None,
    max_excess_nfr: Excess = None,
    max_relative_nfr: Relative = None,
    min_gain: Gain = None,
    must_keep: MustKeep = None,
    waive: Waive = None,
    slice_: Slices = None,
    pair: Pair = None,
    output: Annotated[
        str | None, typer.Option(help="Where gate.json and junit.xml go; default: beside REPORT.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Hold a report against limits: does the update break too much?

    A limit is passed when the one-sided 95 % bound is inside it, in every task alone. Exit
    code 0: pass; 1: fail; 3: not enough evidence; 2: wrong usage; 70: our own failure.
    """
    from muscle.gate import judge, make_limits, print_gate
    from muscle.report.console import SteadyConsole

    with stoppable():
        limits = make_limits(
            max_nfr=max_nfr,
            max_excess_nfr=max_excess_nfr,
            max_relative_nfr=max_relative_nfr,
            min_gain=min_gain,
            must_keep=must_keep,
            waive=waive,
            slices=slice_ or (),
        )
        result = judge(report, limits, pair=pair, output=output)
        print_gate(result.gate, SteadyConsole())
    raise typer.Exit(result.exit_code)


app.command()(submit)
app.command()(release)
app.command("check-adapter")(check_adapter)
app.add_typer(jobs, name="jobs")


@contextmanager
def stoppable() -> Iterator[None]:
    """Ctrl-C is a way to stop, not an error."""
    try:
        yield
    except KeyboardInterrupt:
        print("muscle: stopped; run the same command again to go on", file=sys.stderr)
        raise typer.Exit(130) from None


def main(arguments: list[str] | None = None) -> None:
    """Run a command; an error that a user can mend is one line and exit code 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        app(args=arguments, prog_name="muscle")
    except SystemExit as stopped:
        # Typer's and Rich's answer to a closed pipe is 1, which is a gate's "fail".
        if not isinstance(stopped.__context__, BrokenPipeError):
            raise
        from muscle.report.console import hush

        hush(sys.stdout)
        raise SystemExit(UNREAD) from None
    except UserError as error:
        _complain(str(error), arguments)
        raise SystemExit(2) from None
    except OSError as error:  # a path that can't be read or written
        where = f"{error.filename}: " if error.filename else ""
        _complain(f"{where}{error.strerror or error}", arguments)
        raise SystemExit(2) from None
    except Exception as error:
        if not VERDICTS & set(arguments[:1]):
            from muscle.report.console import show_failure

            sys.excepthook = show_failure
            raise
        what = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        _complain(f"our own failure: {what}; --debug shows the traceback", arguments)
        raise SystemExit(OUR_FAILURE) from None


def _complain(text: str, arguments: list[str]) -> None:
    from muscle.report.console import complain

    complain(text, "--debug" in arguments)


def job(command: str) -> None:
    """A command as a cluster job: the process's own arguments, on the cluster that runs it."""
    from muscle.submission.arrival import arguments_here, output_in, say_results

    try:
        arguments = arguments_here(sys.argv[1:])
    except UserError as error:
        _complain(str(error), sys.argv)
        raise SystemExit(2) from None
    try:
        main([command, *arguments])
    except SystemExit as ended:
        # A fleet's 1 and 3 are answers.
        if ended.code in (0, None) or (command == "run" and ended.code in (1, 3)):
            say_results(command, output_in(arguments))
        raise


if __name__ == "__main__":
    main()
