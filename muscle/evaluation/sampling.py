"""From logits to the next token: transformers' own processors, each row by itself.

Shapes: B rows, V vocabulary.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import LogitsProcessorList
from transformers import generation as processors

# Settings of generate that `Chooser` knows ...
_CHOOSING = {
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "repetition_penalty",
    "no_repeat_ngram_size",
    "min_new_tokens",
}
# ... and those of a model's generation_config that change nothing here.
_INERT = {
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "max_length",
    "transformers_version",
    "use_cache",
    "_from_model_config",
}

_NO_IDS: Any = None  # warpers look at scores only


class Seat(Protocol):
    """What is known of a row when its next token is chosen."""

    @property
    def context(self) -> list[int]: ...
    @property
    def made(self) -> list[int]: ...
    @property
    def generator(self) -> "torch.Generator | None": ...


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of generate, the model's own defaults included."""

    values: Mapping[str, Any]
    eos_ids: frozenset[int]

    @property
    def looks_back(self) -> bool:
        """Whether a row's earlier tokens change its scores."""
        return bool(_by_history(self, 1, "cpu"))

    @property
    def plain(self) -> bool:
        """Nothing but the likeliest token."""
        return not self.values.get("do_sample") and not self.looks_back

    def get(self, name: str, default: float) -> float:
        """A setting, or generate's default where it is not set."""
        value = self.values.get(name)
        return default if value is None else value


def eos_ids(causal: Any) -> frozenset[int]:
    """The token ids at which transformers' generate ends a row."""
    ids = causal.generation_config.eos_token_id
    if ids is None:
        return frozenset()
    return frozenset(ids if isinstance(ids, list | tuple) else [ids])


def own_settings(config: Any) -> dict[str, Any]:
    """What a model's generation config sets; a flag that is off changes nothing."""
    own = config.to_diff_dict()
    return {name: value for name, value in own.items() if value is not None and value is not False}


def settings(causal: Any, arguments: Mapping[str, Any], eos: frozenset[int]) -> "Settings | None":
    """The settings in force, or None if one of them is for transformers' generate to read."""
    own = own_settings(causal.generation_config)
    if not set(own) - _CHOOSING <= _INERT or not set(arguments) - _CHOOSING <= {"num_beams"}:
        return None
    if (arguments.get("num_beams") or 1) != 1:
        return None
    given = {name: value for name, value in arguments.items() if value is not None}
    found = Settings({**own, **given}, eos)
    try:
        _by_history(found, 1, torch.device("cpu"))
        _warpers(found)
    except (ValueError, TypeError):  # generate says why
        return None
    return found


def seeded(seed_key: str, device: Any) -> "torch.Generator":
    """A generator that depends on `seed_key` alone."""
    generator = torch.Generator(device)
    return generator.manual_seed(seed_number(seed_key))


def seed_number(seed_key: str) -> int:
    """63 bits of the key's hash."""
    return int.from_bytes(hashlib.sha256(seed_key.encode()).digest()[:8]) >> 1


class Chooser:
    """Chooses each row's next token; a row's choice never depends on its neighbours."""

    def __init__(self, settings: Settings, device: Any) -> None:
        self.settings, self.device = settings, device
        self.sampled = bool(settings.values.get("do_sample"))
        self.looks_back = settings.looks_back
        self.warpers = _warpers(settings) if self.sampled else LogitsProcessorList()

    def __call__(self, scores_BV: Tensor, rows: Sequence[Seat]) -> list[int | None]:
        """The next token of each row, None for one whose logits are NaN."""
        bad_B = scores_BV.isnan().any(dim=-1)
        # Sampling from NaN would raise for the whole batch.
        scores_BV = scores_BV.masked_fill(bad_B[:, None], 0.0)
        if self.looks_back:
            scores = zip(scores_BV.split(1), rows, strict=True)
            scores_BV = torch.cat([self._with_history(scores_1V, row) for scores_1V, row in scores])
        for warper in self.warpers:
            scores_BV = warper(_NO_IDS, scores_BV)
        if self.sampled:
            chances = zip(torch.softmax(scores_BV, dim=-1), rows, strict=True)
            drawn = [torch.multinomial(p_V, 1, generator=row.generator) for p_V, row in chances]
            chosen_B = torch.cat(drawn)
        else:
            chosen_B = scores_BV.argmax(dim=-1)
        tokens, bad = torch.stack([chosen_B, bad_B.long()]).tolist()
        return [None if b else token for token, b in zip(tokens, bad, strict=True)]

    def _with_history(self, scores_1V: Tensor, row: Seat) -> Tensor:
        """Processors that look at the row's tokens, of which padding must be none."""
        ids_1L = torch.tensor([row.context + row.made], device=self.device)
        chain = _by_history(self.settings, len(row.context), self.device)
        for processor in chain:
            scores_1V = processor(ids_1L, scores_1V)
        return scores_1V


def _by_history(given: Settings, prompt_length: int, device: Any) -> LogitsProcessorList:
    """The processors that depend on a row's tokens, in generate's order."""
    chain = LogitsProcessorList()
    if given.get("repetition_penalty", 1.0) != 1.0:
        penalty = float(given.get("repetition_penalty", 1.0))
        chain.append(processors.RepetitionPenaltyLogitsProcessor(penalty))
    if given.get("no_repeat_ngram_size", 0) > 0:
        size = given.values["no_repeat_ngram_size"]
        chain.append(processors.NoRepeatNGramLogitsProcessor(size))
    if given.get("min_new_tokens", 0) > 0 and given.eos_ids:
        least = given.values["min_new_tokens"]
        chain.append(
            processors.MinNewTokensLengthLogitsProcessor(
                prompt_length, least, sorted(given.eos_ids), device=device
            )
        )
    return chain


def _warpers(given: Settings) -> LogitsProcessorList:
    """What shapes the distribution before sampling, in generate's order, with its defaults."""
    chain = LogitsProcessorList()
    if given.get("temperature", 1.0) != 1.0:
        chain.append(processors.TemperatureLogitsWarper(given.get("temperature", 1.0)))
    if given.get("top_k", 50) != 0:
        chain.append(processors.TopKLogitsWarper(given.get("top_k", 50)))  # type: ignore[arg-type]
    if given.get("top_p", 1.0) < 1.0:
        chain.append(processors.TopPLogitsWarper(given.get("top_p", 1.0)))
    if given.values.get("min_p") is not None:
        chain.append(processors.MinPLogitsWarper(given.values["min_p"]))
    if given.get("typical_p", 1.0) < 1.0:
        chain.append(processors.TypicalLogitsWarper(given.get("typical_p", 1.0)))
    return chain
