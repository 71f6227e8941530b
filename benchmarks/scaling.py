"""Scale on paper: docs/scaling.md's tables, from recorded measurements and stated assumptions.

    python benchmarks/scaling.py                         # print them
    python benchmarks/scaling.py --set h100_dollars=2.5  # under other assumptions
    python benchmarks/scaling.py --write                 # put them into docs/scaling.md
    python benchmarks/scaling.py --check                 # exit code 1 where the page holds others

`scaling_model.py` has the arithmetic.
"""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields, replace

from record import ROOT
from scaling_model import (
    EPOCHS,
    GB,
    MB,
    SIZES,
    TEST,
    TRAIN,
    UNIT,
    Assumptions,
    Update,
    result,
    shares,
    update,
)

PAGE = ROOT / "docs" / "scaling.md"
WIDTHS = (1, 2, 4, 8)
TASKS, NODES, SCORING = 100, 2, 8
"""Tasks of the last table; training nodes of eight GPUs and scoring GPUs, as in cluster.yaml."""


def parsed(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args(argv)
    known = {f.name for f in fields(Assumptions)}
    args.given = Assumptions()
    for word in args.set:
        name, _, value = word.partition("=")
        if name not in known:
            parser.error(
                f"--set {name!r}: no such assumption; there are {', '.join(sorted(known))}"
            )
        args.given = replace(args.given, **{name: float(value)})
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = parsed(argv)
    if args.check:
        wrong = differences(PAGE.read_text(encoding="utf-8"))
        print("\n".join(f"docs/scaling.md: table {w!r} differs: --write" for w in wrong), end="")
        return 1 if wrong else 0
    made = {name: make(args.given) for name, make in TABLES.items()}
    if args.write:
        PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), made), encoding="utf-8")
    else:
        print("\n\n".join(made.values()))
    return 0


def differences(page: str) -> list[str]:
    """The tables that a page lacks or holds otherwise, under the assumptions as they stand."""
    return [name for name, make in TABLES.items() if held(page, name) != make(Assumptions())]


def held(page: str, name: str) -> str | None:
    """What stands between a table's markers."""
    found = re.search(_marked(name), page, re.DOTALL)
    return found[1] if found else None


def filled(page: str, made: dict[str, str]) -> str:
    """A page with its tables replaced."""
    for name, text in made.items():
        whole = f"<!-- table {name} -->\n{text}\n<!-- end -->"
        page, times = re.subn(_marked(name), lambda _, w=whole: w, page, flags=re.DOTALL)
        if times != 1:
            raise SystemExit(f"the page has {times} places for table {name!r}")
    return page


def _marked(name: str) -> str:
    return rf"<!-- table {name} -->\n(.*?)\n?<!-- end -->"


# --- cells ----------------------------------------------------------------------------


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def by_size(given: Assumptions, first: str, rows: dict[str, Callable[[Update], str]]) -> str:
    """A table with a column for each size."""
    found = [update(name, size.workers, given) for name, size in SIZES.items()]
    return table(
        [first, *SIZES], [[what, *(cell(u) for u in found)] for what, cell in rows.items()]
    )


def number(value: float) -> str:
    """Two or three figures, thousands apart."""
    if value == 0:
        return "0"
    return (
        f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2g}" if value < 10 else f"{value:.0f}"
    )


def duration(value: float) -> str:
    """Seconds in the unit that reads best."""
    if value < 1:
        return "< 1 s" if value else "–"
    if value < 120:
        return f"{value:.0f} s"
    return f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.1f} h"


# --- tables ---------------------------------------------------------------------------


def assumptions_table(given: Assumptions) -> str:
    """Every assumption by name."""
    rows = [
        [f"`{f.name}`", f"{getattr(given, f.name):g} {f.metadata['unit']}", f.metadata["why"]]
        for f in fields(given)
    ]
    return table(["assumed", "value", "of what"], rows)


def measurements_table(given: Assumptions) -> str:
    """Every measurement that is used, with its file."""
    from object_store import per_unit

    rates, store = result("rates-cuda")["tokens_per_second"], result("object-store")
    rows = []
    for name, size in SIZES.items():
        found, share = rates[size.rates], shares(name)
        part = (
            "" if found["layers"] == size.layers else f", {found['layers']} of {size.layers} layers"
        )
        train, forward = found["train"]["median"], found["forward"]["median"]
        rows.append(
            [
                f"H100, {name}{part}: tokens/s of a plain LoRA step; of a forward",
                f"{train:,.0f}; {forward:,.0f} ({share.train:.0%}, {share.forward:.0%} of the "
                "data sheet's rate)",
                "rates-cuda",
            ]
        )
    work, lengths = result("hellaswag-v2-cpu-float32")["work"], result("lengths")["tasks"]
    tree = work["tokens_of_prefix_tree"] / work["rows"]
    units = next(iter(result("pipeline-units")["units"].values()))
    spread = store["shards"]
    speeds = [spread[f"{k}_bytes_per_second"]["median"] / MB for k in ("write", "check", "read")]
    asked = {k: round(sum(v.values())) for k, v in per_unit(store["runs"]).items()}
    rows += [
        [
            "HellaSwag: tokens of a training sequence; of a question's prefix tree",
            f"{lengths['hellaswag']['mean']:.0f}; {tree:.0f}",
            "lengths, hellaswag-v2-cpu-float32",
        ],
        [
            "names of units through the driver; its memory",
            f"{units['units_per_second']:,.0f}/s; {units['driver_peak_mib']:,.0f} MiB",
            "pipeline-units",
        ],
        [
            f"a shard of {spread['bytes'] / MB:.0f} MB by one thread: written, checked, read",
            "; ".join(f"{v:,.0f}" for v in speeds) + " MB/s",
            "object-store",
        ],
        [
            "requests to S3: of an update, a shard, a group of questions, a checkpoint",
            f"{asked['update']}, {asked['shard']}, {asked['group']}, {asked['save']}",
            "object-store",
        ],
    ]
    return table(["measured", "result", "benchmarks/results/"], rows)


def updates_table(given: Assumptions) -> str:
    """What one update of each size takes."""

    def hours(kind: str) -> Callable[[Update], str]:
        return lambda u: number(sum(s.hours * s.gpus for s in u.of(kind)))

    def room(kind: str) -> Callable[[Update], str]:
        def cell(u: Update) -> str:
            worst = max(u.of(kind), key=lambda s: s.memory.total)
            fits = "of" if worst.fits else "**more than**"
            return f"{worst.memory.total / 2**30:.0f} {fits} {worst.available / 2**30:.0f}"

        return cell

    return by_size(
        given,
        "one update",
        {
            "GPUs: trainings of old and new side by side": lambda u: f"2 × {u.size.workers} H100",
            "GPUs: scoring, one for each base": lambda u: f"2 {u.size.scoring}",
            "GiB of a training GPU": room("train"),
            "GiB of a scoring GPU": room("evaluate"),
            "GPU hours: three trainings": hours("train"),
            "GPU hours: both caches; three versions' answers": lambda u: (
                f"{hours('cache')(u)}; {hours('evaluate')(u)}"
            ),
            "**GPU hours**": lambda u: number(u.gpu_hours),
            "**dollars of GPUs at work**": lambda u: number(u.dollars),
            "dollars where nothing shares its nodes": lambda u: number(u.alone_dollars()),
            "hours of wall time, arithmetic alone": lambda u: number(
                (u.training_seconds + u.scoring_seconds) / 3600
            ),
            "**hours with all that delays it**": lambda u: number(u.wall_seconds / 3600),
            "GB: both bases": lambda u: number(2 * u.base_bytes / GB),
            "GB: cache (until compat is trained)": lambda u: number(u.cache_bytes / GB),
            "GB: three adapters in fp32": lambda u: number(12 * u.adapter / GB),
        },
    )


def delays_table(given: Assumptions) -> str:
    """What delays each size, and the largest of it."""
    causes = list(update("7B", 1, given).delays())

    def cell(cause: str) -> Callable[[Update], str]:
        def text(u: Update) -> str:
            value = u.delays()[cause]
            return f"{duration(value)} ({value / u.wall_seconds:.0%})" if value else "–"

        return text

    rows = {cause: cell(cause) for cause in causes}
    rows["**the next bottleneck**"] = lambda u: f"**{max(u.delays(), key=u.delays().__getitem__)}**"
    return by_size(given, "delay (share of the wall time)", rows)


def limits_table(given: Assumptions) -> str:
    """At which width a shared thing is full."""
    units = next(iter(result("pipeline-units")["units"].values()))["units_per_second"]
    node, put, disk = given.get_rate * MB, given.put_rate * MB, given.disk_rate * MB
    return by_size(
        given,
        "",
        {
            "groups of 128 questions a second, one GPU": lambda u: number(u.units_per_second),
            "scoring GPUs at which one driver is full": lambda u: number(
                units / u.units_per_second
            ),
            "MB/s of cache that a scoring GPU makes": lambda u: number(
                u.cached_bytes_per_second / MB
            ),
            f"share of its time for that at {put / MB:.0f} MB/s to the store": lambda u: (
                f"{1 / (1 + u.cached_bytes_per_second / put):.0%}"
            ),
            "MB/s of cache that a training GPU reads": lambda u: number(
                u.read_bytes_per_second / MB
            ),
            "training GPUs of a node that its disk feeds": lambda u: number(
                disk / u.read_bytes_per_second
            ),
            "training GPUs of a node that the store feeds": lambda u: number(
                node / u.read_bytes_per_second
            ),
            "GB of a checkpoint": lambda u: number(u.checkpoint_bytes / GB),
            f"seconds to put it, of every {given.checkpoint_seconds:.0f}": lambda u: number(
                u.checkpoint_bytes / put
            ),
            "requests to the store; their price": lambda u: (
                f"{sum(u.requests().values()):,.0f}; ${u.request_dollars():.2f}"
            ),
        },
    )


def width_line(given: Assumptions) -> str:
    """What more GPUs for one training bring at 7B."""
    found = {n: update("7B", n, given).steps["train compat"].hours for n in WIDTHS}
    parts = [f"{found[n]:.2f} h on {n}" for n in WIDTHS]
    return f"One 7B training on more GPUs: {', '.join(parts)}."


def tasks_table(given: Assumptions) -> str:
    """A hundred such updates of one pair of bases on the nodes of cluster.yaml."""
    driver = next(iter(result("pipeline-units")["units"].values()))["driver_peak_mib"]

    def training(u: Update) -> float:
        return TASKS * sum(s.hours * s.gpus for s in u.of("train"))

    def scoring(u: Update) -> float:
        return TASKS * sum(s.hours * s.gpus for s in [*u.of("cache"), *u.of("evaluate")])

    def loading(u: Update) -> float:
        """GPU hours: both bases, for caching and for answers."""
        return TASKS * 4 * u.base_bytes / (given.disk_rate * MB) / 3600

    def together(u: Update) -> int:
        return 8 * NODES // u.size.gpus

    return by_size(
        given,
        f"{TASKS} tasks",
        {
            "GPU hours: training": lambda u: number(training(u)),
            "GPU hours: scoring": lambda u: number(scoring(u)),
            "GPU hours: loading bases to score": lambda u: number(loading(u)),
            "dollars of GPUs at work": lambda u: number(TASKS * u.dollars),
            f"updates at once on {8 * NODES} training GPUs": lambda u: str(together(u)),
            "days of training on them": lambda u: number(training(u) / (8 * NODES) / 24),
            f"days of scoring on {SCORING} GPUs": lambda u: number(
                (scoring(u) + loading(u)) / SCORING / 24
            ),
            "GiB of drivers at once": lambda u: number(together(u) * driver / 1024),
            "GB kept: bases and adapters": lambda u: number(
                (2 * u.base_bytes + TASKS * 12 * u.adapter) / GB
            ),
            "TB of caches, if all are kept": lambda u: number(TASKS * u.cache_bytes / 1e12),
            "dollars a month for those": lambda u: number(
                TASKS * u.cache_bytes / GB * given.month_dollars
            ),
        },
    )


def paper_line(given: Assumptions) -> str:
    """The paper's sum beside ours, which counts less."""
    hours = update("7B", 1, given).gpu_hours
    return (
        f"One 7B update of HellaSwag's size ({TRAIN:,} training rows, {EPOCHS} epochs, {TEST:,} "
        f"questions in groups of {UNIT}) is {number(hours)} GPU hours here; sixteen of them are "
        f"{number(16 * hours)}."
    )


TABLES: dict[str, Callable[[Assumptions], str]] = {
    "assumptions": assumptions_table,
    "measurements": measurements_table,
    "updates": updates_table,
    "delays": delays_table,
    "limits": limits_table,
    "width": width_line,
    "tasks": tasks_table,
    "paper": paper_line,
}


if __name__ == "__main__":
    sys.exit(main())
