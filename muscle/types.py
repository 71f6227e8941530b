"""The records that travel between rooms.

Plain frozen dataclasses: nothing here imports torch, Ray or the harness, so the
metrics and the report start in a second. Three of the records are rows of Parquet
files (`Query`, `Answer`, `Prediction`); `muscle.tables` reads and writes them.

The way of one example: a task makes a `Query` of it (what a model is asked), an
engine returns an `Answer` (what the model said), the task judges it and a
`Prediction` comes out (was it right).
"""

from dataclasses import dataclass, field
from typing import Literal

Version = Literal["old", "new", "compat"]
"""The three models of an update, always in this order."""

VERSIONS: tuple[Version, ...] = ("old", "new", "compat")

BOTH: tuple[Version, Version] = ("old", "new")
"""The two that teach the third."""

AGAIN = "again"
"""Not a version of the update: old, trained with another seed. Its flips are the noise floor."""

Truncated = Literal["prompt", "answer", "prompt and answer"]
"""What did not fit: a prompt lost its beginning, a generated answer its end (it reached the
most tokens that it may have, without a stop)."""


def lost(prompt: bool, answer: bool) -> Truncated | None:
    """What did not fit, of its two parts."""
    if prompt and answer:
        return "prompt and answer"
    return "prompt" if prompt else "answer" if answer else None


RequestKind = Literal[
    "loglikelihood", "loglikelihood_to_end", "loglikelihood_rolling", "generate_until"
]

SCORED: tuple[RequestKind, ...] = ("loglikelihood", "loglikelihood_to_end")
"""Kinds that score a continuation."""


@dataclass(frozen=True, slots=True)
class TrainingExample:
    """One example of the training split, rendered.

    The training sequence is tokens(prompt + answer) + EOS. `answer` begins with the
    task's target delimiter, exactly as the harness scores the gold answer, so that
    training and evaluation split the text at the same place.

    A chat is `prompt + answer` as its template renders it, special tokens included, so that
    neither BOS nor EOS is added. `turns` are the character ranges of `prompt + answer` that the
    model is to write, one for each assistant's turn, its end-of-turn token included; None for
    what is no chat.
    """

    id: str
    prompt: str
    answer: str
    turns: tuple[tuple[int, int], ...] | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """One call of a model: score `continuation` after `context`, or generate.

    A "loglikelihood_to_end" request scores `continuation` and the EOS that ends an answer.
    A "loglikelihood_rolling" request scores all of `context`, a whole document that may be
    longer than the window; its output has a log-likelihood and no greediness.
    `generation` is the harness's `gen_kwargs` as a JSON object (stop strings under
    "until", "max_gen_toks", "do_sample", …); empty for log-likelihoods.
    """

    kind: RequestKind
    context: str
    continuation: str = ""
    generation: str = ""


@dataclass(frozen=True, slots=True)
class Query:
    """Everything one evaluation example asks of a model; a row of a request file.

    `chat` is a chat as a JSON object ({"messages": […], "tools": […]}), None for plain text. The
    requests' contexts are then what this version's template makes of it, special tokens
    included, so that no tokenizer adds any.
    """

    id: str
    requests: tuple[Request, ...]
    chat: str | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """One input that answers are distilled on.

    query      what is asked: K >= 2 log-likelihood requests, one for each given answer, or one
               generation request where a model writes its answer
    gold       the right answer's place among the K, where somebody labelled the input
    lengths    of the K answers, in characters without their leading space, as acc_norm has it
    gold_text  the right written answer, delimiter included, where somebody labelled the input
    """

    query: Query
    gold: int | None = None
    lengths: tuple[int, ...] = ()
    gold_text: str | None = None

    @property
    def id(self) -> str:
        """The query's."""
        return self.query.id


@dataclass(frozen=True, slots=True)
class Output:
    """What a model returns for one `Request`.

    `loglikelihood` is the natural-log probability of the whole continuation and
    `is_greedy` whether greedy decoding would have produced it; both None for
    generation, whose result is `text`. `truncated` says what did not fit, else None.
    """

    loglikelihood: float | None = None
    is_greedy: bool | None = None
    text: str | None = None
    truncated: "Truncated | None" = None


@dataclass(frozen=True, slots=True)
class Answer:
    """A model's outputs for one `Query`, in the order of its requests.

    `error` is None, or why this example has no outputs; such a row is never dropped.
    """

    id: str
    outputs: tuple[Output, ...]
    error: str | None = None


def unanswered(query: Query, request: int, reason: str) -> Answer:
    """The answer to a query of which one request failed: half a question has no choice."""
    which = f"request {request}: " if len(query.requests) > 1 else ""
    return Answer(query.id, (), f"{which}{reason}")


@dataclass(frozen=True, slots=True)
class Prediction:
    """One evaluation example under one model, judged; a row of `<version>/<task>.parquet`.

    id             unique in the task; joins between versions are on (task, id)
    question       the rendered context, identical in all versions
    gold           the right answer as text (several accepted answers: the first)
    prediction     the answer given: the chosen choice's text, the filtered
                   generation; None when unscored
    metric         the name of the task's deciding metric ("acc", "exact_match", …)
    score          its value for this example, higher is better: 0 or 1 for accuracy-like
                   metrics, else a real number (in [0, 1] for ROUGE, at most 0 for a log
                   likelihood per byte); None when unscored
    metrics        all of the task's metrics for this example ("acc", "acc_norm", …)
    choices        the texts of the choices, None for generation
    loglikelihoods one per choice, None for generation and whole documents
    error          why the example is unscored, else None
    response       what a model wrote, before the task's filters; None where it only scored
    truncated      what did not fit, else None
    document       a hash of the task's own row, equal however the prompt is rendered
    fields         short values of that row (subject, length, …), for slices
    prompt         what this version was asked in its own words (its chat template); None where
                   that is the question
    reason         why the score is what it is, in a few words, from scorers that say so
    """

    task: str
    id: str
    question: str
    gold: str
    prediction: str | None
    metric: str
    score: float | None
    metrics: dict[str, float] = field(default_factory=dict)
    choices: tuple[str, ...] | None = None
    loglikelihoods: tuple[float, ...] | None = None
    error: str | None = None
    response: str | None = None
    truncated: Truncated | None = None
    document: str | None = None
    fields: dict[str, str] = field(default_factory=dict)
    prompt: str | None = None
    reason: str | None = None
