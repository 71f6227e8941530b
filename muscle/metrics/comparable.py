"""What must be the same on all sides of a comparison, and what is shown when it isn't.

A flip says that a model changed its mind about one example. Where the examples or the
measure differ, there is nothing to compare, and the comparison is refused. Where only the
circumstances differ (another prompt, another precision), the numbers stand, with a note.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from muscle.errors import UserError
from muscle.side import Side

REFUSED = {
    "task_version": ("task version", "evaluate both with one version of the task"),
    "filter": ("filter", "compare answers that were filtered alike"),
}
"""Facts of a side that may not differ where both are known: what a message calls them, the mend."""

INSTRUCTION = "system_instruction"

SHOWN = {
    "num_fewshot": "few-shot examples",
    "fewshot_as_multiturn": "few-shot examples as turns of a chat",
    "chat_template": "chat template",
    INSTRUCTION: "system instruction",
    "max_length": "longest input (tokens)",
    "dtype": "number format",
    "backend": "engine",
    "extra_body": "fields added to each request (extra_body)",
}
"""Facts of a side that are shown when they differ."""

MEANS = {"backend": "a flip may come from the engine and not from the model"}
"""What such a difference means for the numbers, where that isn't plain."""

SOFTWARE = ("muscle", "lm_eval", "transformers", "torch")
UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Difference:
    """Something that should be the same in all versions, isn't, and doesn't forbid comparing.

    what     in words
    values   by version, in words; empty where it isn't a value of a version
    note     what it means for the numbers
    """

    what: str
    values: dict[str, str] = field(default_factory=dict)
    note: str = ""


def show(text: str) -> str:
    """A name inside a one-line message: quoted, escaped, cut."""
    return repr(text if len(text) <= 60 else text[:57] + "...")


def short_hash(text: str) -> str:
    """What tells two texts apart and shows neither."""
    return "sha256:" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]


def without_instruction(side: Side) -> Side:
    """The side with a short hash for its system instruction, which is as private as a prompt."""
    text = side.about.get(INSTRUCTION)
    if not text:
        return side
    return replace(side, about={**side.about, INSTRUCTION: short_hash(str(text))})


def check_facts(task: str, sides: Sequence[Side]) -> None:
    """Refuse sides of different task versions or filters; what is unknown can't differ.

    Raises:
        UserError: two sides differ in one of `REFUSED`.
    """
    for key, (words, mend) in REFUSED.items():
        known = [(s.label, str(s.about[key])) for s in sides if s.about.get(key) is not None]
        for label, value in known[1:]:
            if value != known[0][1]:
                raise UserError(
                    f"task {show(task)}: {words} {show(known[0][1])} in {known[0][0]} but "
                    f"{show(value)} in {label}; {mend}"
                )


def differences(sides: Mapping[tuple[int, str], Side]) -> list[Difference]:
    """The facts of `SHOWN` and the software in which the versions differ, where known.

    Args:
        sides: (seed, version) -> side of one task.

    Returns:
        One entry for each fact that is known of two sides and not the same in both.
    """
    found = [_difference(words, sides, (key,)) for key, words in SHOWN.items()]
    found += [_difference(f"version of {name}", sides, ("software", name)) for name in SOFTWARE]
    return [difference for difference in found if difference is not None]


def _difference(
    what: str, sides: Mapping[tuple[int, str], Side], keys: tuple[str, ...]
) -> Difference | None:
    by_version: dict[str, list[str]] = {}
    for (_, version), side in sides.items():
        value = _words(side.about, keys)
        seen = by_version.setdefault(version, [])
        if value not in seen:
            seen.append(value)
    known = {value for seen in by_version.values() for value in seen} - {UNKNOWN}
    if len(known) < 2:
        return None
    values = {version: " / ".join(seen) for version, seen in by_version.items()}
    return Difference(what, values, MEANS.get(keys[0], ""))


def _words(about: Mapping[str, Any], keys: tuple[str, ...]) -> str:
    value: Any = about
    for key in keys:
        if not isinstance(value, Mapping) or key not in value:
            return UNKNOWN
        value = value[key]
    if value is None:
        return "none"
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)


def floor_difference(count: int) -> Difference:
    """The note on examples that only the noise floor takes out of the comparison."""
    are = "1 example is" if count == 1 else f"{count} examples are"
    return Difference(
        "examples that old's second seed has no score for",
        note=f"{are} left out of all numbers because of it, though the versions have scores there",
    )


def prompt_difference(counts: Mapping[tuple[int, str], int], n: int, hashed: bool) -> Difference:
    """The note on examples that some versions were asked in other words.

    Args:
        counts: (seed, version) -> examples whose prompt isn't that of the first side.
        n: all examples of the task.
        hashed: whether hashes of the task's own rows prove that the examples are the same.
    """
    by_version: dict[str, int] = {}
    for (_, version), count in counts.items():
        by_version[version] = max(by_version.get(version, 0), count)
    values = {
        version: f"{count} of {n} differ from the first" if count else "as the first"
        for version, count in by_version.items()
    }
    note = (
        "the versions were asked the same examples in other words: a flip may come from the "
        "prompt and not from the model"
    )
    if not hashed:
        note = (
            "nothing proves that these are the same examples: only their ids and right answers "
            "agree, and the prompts differ. If the prompts are of other examples, no number here "
            "means anything"
        )
    return Difference("rendered prompts", values, note)
