"""What removes negative flips: all methods on small real updates, compared.

    MUSCLE_DATA=DATA MUSCLE_MODELS=MODELS python benchmarks/effect.py --work WORK --full --jobs 2
    … --screen            all methods, one seed of two cells, on tuning data only
    … --full              screen; then the best four and all controls on every cell and seed; test
    … --full --hours 10   begins no fit after that, and reports what there is
    … --report            renews the page from the records

Writes docs/effect.md (its tables and plots; the words between them stay), docs/effect/*.svg and
benchmarks/results/effect.json. A second start does only what is missing; Ctrl-C costs one fit.
See benchmarks/README.md.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from effect_cells import CELLS, SCREENED, prepare, seeds_of, task_of, update_of
from effect_methods import CONTROLS, GROWTH, METHODS, candidates
from effect_queue import Clock, work_off
from effect_records import Job, Records, jobs_of
from record import say

BEST = 4


def parsed(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder of artifacts and records")
    phase = parser.add_mutually_exclusive_group(required=True)
    phase.add_argument("--screen", action="store_true")
    phase.add_argument("--full", action="store_true")
    phase.add_argument("--report", action="store_true")
    parser.add_argument("--hours", type=float, help="begin no fit after so many")
    parser.add_argument("--jobs", type=int, default=1, help="processes of one thread each")
    parser.add_argument("--methods", nargs="+", choices=METHODS, metavar="METHOD",
                        help="instead of those that the phase takes")  # fmt: skip
    parser.add_argument("--tasks", nargs="+", choices=dict.fromkeys(map(task_of, CELLS)))
    parser.add_argument("--updates", nargs="+", metavar="OLD-NEW", help="v1-v2 v1-v3 v0-v2")
    parser.add_argument("--seeds", type=int, help="at most so many of each cell")
    parser.add_argument("--best", nargs="+", choices=METHODS, metavar="METHOD",
                        help="instead of the best four by tuning data")  # fmt: skip
    parser.add_argument("--retry", action="store_true", help="try what couldn't be done")
    parser.add_argument("--dry-run", action="store_true", help="list the fits that are missing")
    args = parser.parse_args(argv)
    args.work = args.work.resolve()
    known = {cell.split("-", 1)[1] for cell in CELLS}
    if args.updates and not set(args.updates) <= known:
        parser.error(f"--updates: there are {', '.join(sorted(known))}")
    args.cells = [
        cell
        for cell in CELLS
        if (not args.tasks or task_of(cell) in args.tasks)
        and (not args.updates or cell.split("-", 1)[1] in args.updates)
    ]
    if not args.cells:
        parser.error("no cell has this task and this update")
    if args.jobs < 1 or (args.seeds is not None and args.seeds < 1):
        parser.error("--jobs and --seeds must be at least 1")
    return args


def seeds(args: argparse.Namespace, cells: Sequence[str]) -> dict[str, list[int]]:
    """The seeds of each cell."""
    return {cell: list(range(min(seeds_of(cell), args.seeds or 99))) for cell in cells}


def screening(args: argparse.Namespace) -> list[Job]:
    """All methods, one seed, on tuning data."""
    cells = [cell for cell in args.cells if cell in SCREENED] or args.cells[:1]
    return jobs_of(cells, {cell: [0] for cell in cells}, args.methods or list(METHODS), "tuning")


def best(args: argparse.Namespace, records: Records) -> list[str]:
    """The best methods by the tuning data of the screening."""
    from effect_choice import ranked

    if args.best:
        return list(args.best)
    found = [row.method for row in ranked(records.all(), SCREENED, candidates()) if row.allowed]
    return found[:BEST]


def whole(args: argparse.Namespace, records: Records, part: str) -> list[Job]:
    """The best methods and all controls on every cell and seed."""
    chosen = args.methods or [*CONTROLS, *best(args, records)]
    jobs = jobs_of(args.cells, seeds(args, args.cells), list(dict.fromkeys(chosen)), part)
    # How the effect grows is shown on the screened cells.
    grown = {m for lines in GROWTH.values() for line in lines.values() for _, m in line}
    cells = [cell for cell in args.cells if cell in SCREENED]
    if part == "test" and not args.methods:
        jobs += jobs_of(cells, {cell: [0] for cell in cells}, sorted(grown), part)
    return jobs


def phase(args: argparse.Namespace, records: Records, clock: Clock, jobs: Sequence[Job]) -> bool:
    """Do what is missing of some jobs; false where the time was up."""
    missing = records.missing(jobs, args.retry)
    say(f"{len(missing)} of {len(jobs)} fits are missing")
    if args.dry_run:
        for job in missing:
            say(f"  {job.cell} seed {job.seed} {job.method} {'+'.join(job.parts)}")
        return True
    left = work_off(args.work, missing, args.jobs, clock)
    if left:
        say(f"{len(left)} are left for the next start")
    return not clock.up


def read_test(args: argparse.Namespace, records: Records, clock: Clock) -> None:
    """Ask the test split, once, whoever has been fitted: it takes seconds each."""
    fitted = [
        job
        for job in whole(args, records, "test")
        if not records.lacks(Job(job.cell, job.seed, job.method, ("tuning",)))
    ]
    phase(args, records, Clock(None), fitted)


def main() -> None:
    """Fit what is missing, and write the page."""
    args = parsed()
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # torch is imported later
        os.environ.setdefault(name, "1")
    records = Records(args.work)
    if not args.report:
        args.work.mkdir(parents=True, exist_ok=True)
        prepare(args.work, args.cells)
        clock = Clock(args.hours)
        done = phase(args, records, clock, screening(args))
        if args.full and done:
            phase(args, records, clock, whole(args, records, "tuning"))
        if args.full and not args.dry_run:
            read_test(args, records, clock)
        if args.dry_run:
            return
    from effect_report import write_page

    write_page(args.work, records.all(), best(args, records))
    say(f"wrote docs/effect.md for {', '.join(f'{task_of(c)} {update_of(c)}' for c in args.cells)}")


if __name__ == "__main__":
    main()
