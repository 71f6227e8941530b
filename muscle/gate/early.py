"""What can be refused before anything is counted, so that an earlier report stays whole."""

from collections.abc import Mapping

from muscle.gate.limits import Limits
from muscle.gate.must_keep import read_must_keep
from muscle.gate.reading import choose_pair, find
from muscle.gate.waivers import read_waivers
from muscle.metrics.pairing import JoinedTask
from muscle.report.text import one_line


def check_early(tasks: Mapping[str, JoinedTask], limits: Limits, pair: str | None) -> None:
    """Refuse limits that a comparison of these tasks can't be held against.

    Raises:
        UserError: a pair that isn't there, a noise floor that is needed and missing or says
            nothing of the pair, a list that can't be read.
    """
    named = {
        name: {"pairs": {f"{a}->{b}": None for a, b in task.pairs}} for name, task in tasks.items()
    }
    chosen = choose_pair({"tasks": named}, pair)
    for name, task in tasks.items():
        if limits.max_excess_nfr is not None and not (task.again and chosen.startswith("old->")):
            nothing = {"n": 1, "noise_floor": None}
            find(nothing, chosen, "max_excess_nfr", f"task {one_line(name, 60)!r}", False)
    if limits.must_keep is not None:
        read_must_keep(limits.must_keep, tasks)
    if limits.waive is not None:
        read_waivers(limits.waive)
