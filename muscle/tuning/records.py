"""What a search knows: plain records, each a JSON value and back."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Bounds = tuple[float, float] | None
"""A 95 % interval, low <= high; None where the examples can't tell."""

State = Literal["running", "finished", "stopped", "diverged", "failed"]
"""Of a trial: `stopped` early as infeasible, `diverged` (a loss that isn't finite), `failed` for
another reason, which the next start tries again."""


@dataclass(frozen=True)
class Measured:
    """One candidate on one set of examples, against old and new there; means over seeds.

    n, unscored  examples scored in all versions, and the others
    nfr          negative flip rate old -> candidate, a fraction
    nfr_new      the same of old -> new
    score        the candidate's mean score (accuracy, or ROUGE)
    gain         score - new's score
    ci95         of `nfr`, `score`, `gain` and `reduction` (nfr - nfr_new), over examples
    p            exact McNemar of new's flips against the candidate's; None for several seeds
                 or a continuous metric's scores
    """

    n: int
    unscored: int
    nfr: float
    nfr_new: float
    score: float
    gain: float
    ci95: Mapping[str, Bounds]
    p: float | None

    @property
    def new_score(self) -> float:
        """The mean score of new on the same examples."""
        return self.score - self.gain

    def violation(self, epsilon: float) -> float:
        """How far the score is below new's less epsilon; at most 0 where feasible."""
        below = -self.gain - epsilon
        # A difference of means must not fail at its own bound for rounding.
        return below if below > 1e-12 else min(0.0, below)

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> "Measured":
        """The inverse of `dataclasses.asdict`."""
        bounds = {k: None if v is None else (v[0], v[1]) for k, v in value["ci95"].items()}
        return Measured(**{**value, "ci95": bounds})


@dataclass(frozen=True)
class Trial:
    """One setting that was tried.

    number   from 0, in the order of asking
    params   values of the space's parameters
    reason   why it was stopped, diverged or failed
    a        on half A; of a stopped trial, on the examples of its last look
    seconds  spent: `training`, `scoring`, `total`
    """

    number: int
    params: Mapping[str, Any]
    state: State = "running"
    reason: str | None = None
    a: Measured | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def done(self) -> bool:
        """Whether no start has to run it (again)."""
        return self.state not in ("running", "failed")

    def to_json(self) -> dict[str, Any]:
        """A JSON value; `from_json` reads it back."""
        return asdict(self)

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> "Trial":
        """The inverse of `to_json`."""
        a = value.get("a")
        return Trial(**{**value, "a": None if a is None else Measured.from_json(a)})


@dataclass(frozen=True)
class Candidate:
    """What could be served: a trial's adapter, or an interpolation of it with new's.

    interpolation  1 is the trained adapter
    residual       share of the weight change (Frobenius norm) that new's rank can't hold
    b              on half B, for finalists
    """

    trial: int
    interpolation: float
    residual: float
    a: Measured
    b: Measured | None = None

    @property
    def name(self) -> str:
        """How tables call it."""
        scale = "" if self.interpolation == 1 else f" x {self.interpolation:g}"
        return f"trial {self.trial}{scale}"


@dataclass(frozen=True)
class Contender:
    """One row of the last table: a model on the test split.

    name           `chosen`, `default` (the paper's settings), `always-old`, `control`
    compatibility  its settings
    test           measured on the test split
    difference     its NFR less the chosen one's on the same examples, with `ci95` and exact
                   McNemar `p` (None for several seeds); None for the chosen one itself
    """

    name: str
    compatibility: Mapping[str, Any]
    test: Measured
    difference: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Found:
    """A finished search.

    n_a, n_b     tuning examples in each half
    space        the parameters and their values, as JSON values
    candidates   the best trials and their interpolations, best on half A first
    chosen       the best feasible finalist on half B; None: no feasible trial
    closest      who came closest, where none is feasible
    why          in one sentence, how it ended
    test         chosen and references on the test split; empty without a chosen one
    front        trial numbers that no other trial beats in both NFR and score, on half A
    importances  of parameters for NFR, shares of 1; None where too few trials tell
    seconds      `total`, and the trials' `training` and `scoring`; this start's only
    """

    name: str
    epsilon: float
    pareto: bool
    n_a: int
    n_b: int
    smallest_difference: float
    continuous: bool
    space: Mapping[str, Any]
    trials: tuple[Trial, ...]
    candidates: tuple[Candidate, ...]
    chosen: Candidate | None
    closest: Candidate | None
    why: str
    test: tuple[Contender, ...]
    front: tuple[int, ...]
    importances: Mapping[str, float] | None
    seconds: Mapping[str, float]
    provenance: Mapping[str, Any]
