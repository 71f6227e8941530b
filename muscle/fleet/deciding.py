"""What to do with an adapter, by what the gate says of new and of compat. No torch."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

Decision = Literal["move", "move with compat", "stay", "not enough evidence", "failed"]

DECISIONS: tuple[Decision, ...] = (
    "failed",
    "stay",
    "not enough evidence",
    "move with compat",
    "move",
)
"""What needs somebody first."""

ALL_MOVE, SOME_STAY, UNSURE = 0, 1, 3

_BETTER = ("fail", "not enough evidence", "pass")


def best_pair(new: str, compat: str = "") -> str:
    """The pair of the version to serve: compat's, unless the gate thinks better of new.

    Args:
        new, compat: verdicts on old->new and old->compat; empty: there is no compat adapter.
    """
    if not compat or new == "pass":
        return "old->new"
    better = _BETTER.index(new) > _BETTER.index(compat)
    return "old->new" if better else "old->compat"


def decide(new: str, compat: str = "") -> Decision:
    """The decision on two verdicts, as `best_pair` takes them."""
    if new == "pass":
        return "move"
    if compat == "pass":
        return "move with compat"
    if "not enough evidence" in (new, compat):
        return "not enough evidence"
    return "stay"


def exit_code(decisions: Sequence[str]) -> int:
    """0: every adapter can move; 1: one stays or failed at least; 3: none of these, but of one
    not enough is known."""
    if any(d in ("stay", "failed") for d in decisions):
        return SOME_STAY
    return UNSURE if "not enough evidence" in decisions else ALL_MOVE


def needed_examples(gate: Mapping[str, Any]) -> int | None:
    """How many examples would settle a gate that lacks evidence; None where no number is known
    to do."""
    open_checks = [c for c in gate["checks"] if c["verdict"] == "not enough evidence"]
    needed = [check["needed_n"] for check in open_checks]
    if not needed or None in needed:
        return None
    return max(int(n) for n in needed)
