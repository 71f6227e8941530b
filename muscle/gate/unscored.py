"""Examples without a score: a limit is kept for sure only if it were with all of them lost.

Who answers only what is easy has no flips. Nothing is known of an example that some version
has no score for, so a pass has to hold where every one of them is a negative flip.
"""

from collections.abc import Mapping
from typing import Any

from muscle.gate.limits import LimitName
from muscle.gate.reading import Found, part
from muscle.metrics.bounds import clopper_pearson


def worst_bound(
    limit: LimitName,
    found: Found,
    unscored: int,
    task: Mapping[str, Any],
    pair: str,
    of: str,
) -> float | None:
    """The bound that decides, were every unscored example a negative flip.

    NFR's is Clopper and Pearson's with m flips more among m examples more (of several seeds:
    of the mean rate). An excess and a gain are m examples at their worst, 1 and -1, beside n
    whose mean is at its bound: (n bound ± m) / (n + m). Relative NFR's bound is as far from its
    value as before.

    Args:
        found: the number and its bounds, of `found.n` examples.
        unscored: how many more there are, m.
        task: of report.json; its versions' scores and its pair are read for relative NFR.
        of: what to call it in a message.

    Returns:
        The upper bound, of a gain the lower one; None where the number has no bounds.
    """
    n, m = found.n, unscored
    if found.value is None or found.lower is None or found.upper is None:
        return None
    if limit == "max_nfr":
        bounds = clopper_pearson(min(found.value * n + m, n + m), n + m)
        return None if bounds is None else bounds.high
    if limit == "max_excess_nfr":
        return (n * found.upper + m) / (n + m)
    if limit == "min_gain":
        return (n * found.lower - m) / (n + m)
    before, after = pair.split("->")
    nfr = float(part(task, "pairs", pair, "nfr", of=of))
    right = float(part(task, "versions", before, "score", of=of))
    wrong = 1 - float(part(task, "versions", after, "score", of=of))
    value = (n * nfr + m) * (n + m) / ((n * right + m) * (n * wrong + m))
    return value + found.upper - found.value
