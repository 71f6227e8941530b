"""Where a row stops: at the step at which the harness would end it if it were alone."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, StoppingCriteria


class Stops:
    """The harness's rule for one list of stop strings.

    The harness looks for a stop string in the decoded last k + 2 generated tokens, where
    k is the stop string's own token count.
    """

    def __init__(self, until: Sequence[str], tokenizer: Any, eos_ids: frozenset[int]) -> None:
        self.tokenizer = tokenizer
        self.eos_ids = eos_ids
        self.windows: dict[int, list[str]] = {}
        for stop in until:
            if stop:
                size = len(tokenizer.encode(stop, add_special_tokens=False)) + 2
                self.windows.setdefault(size, []).append(stop)
        self.longest = max(self.windows, default=1)

    def __call__(self, rows: Sequence[Sequence[int]]) -> list[bool]:
        """For each row's generated tokens whether the last one ends it."""
        ended = [bool(tokens) and tokens[-1] in self.eos_ids for tokens in rows]
        if not self.windows:
            return ended
        # A stop string in a few tokens is also in more of them (at the start of a text a
        # decoder may drop a space, never add one): most rows are decoded once.
        texts = self.tokenizer.batch_decode([list(tokens[-self.longest :]) for tokens in rows])
        for row, text in enumerate(texts):
            for size, stops in self.windows.items():
                if any(stop in text for stop in stops):
                    recent = self.tokenizer.decode(list(rows[row][-size:]))
                    ended[row] |= any(stop in recent for stop in stops)
        return ended


class StopAtStrings(StoppingCriteria):
    """`Stops` inside transformers' generate.

    `stopped_at` is the number of generated tokens up to where a row stopped, and None for
    one that ran to its limit.
    """

    def __init__(self, stops: Stops, prompt_length: int, rows: int) -> None:
        self.stops, self.prompt_length = stops, prompt_length
        self.stopped_at: list[int | None] = [None] * rows

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:  # type: ignore[override]
        """[B, L] tokens so far -> [B], True for rows that are done.

        With beams there are more rows than prompts; as in the harness the first beam decides.
        """
        generated = input_ids[: len(self.stopped_at), self.prompt_length :]
        open_rows = [row for row, at in enumerate(self.stopped_at) if at is None]
        if open_rows:
            recent = generated[open_rows, -self.stops.longest :].tolist()
            for row, stopped in zip(open_rows, self.stops(recent), strict=True):
                if stopped:
                    self.stopped_at[row] = generated.shape[1]
        done = [at is not None for at in self.stopped_at]
        if len(done) != input_ids.shape[0]:
            done = [done[0]] * input_ids.shape[0]
        return torch.tensor(done, device=input_ids.device)


class NanWatch(LogitsProcessor):
    """Remembers the rows whose logits were NaN, which an argmax would turn into some token."""

    def __init__(self) -> None:
        self.bad: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # type: ignore[override]
        bad = scores.isnan().any(dim=-1)
        self.bad = bad if self.bad is None else self.bad | bad
        # Sampling from NaN would raise for the whole batch; the row is an error anyway.
        return torch.where(bad[:, None], torch.zeros_like(scores), scores)

    def is_bad(self, row: int, rows: int) -> bool:
        """Whether prompt `row` of `rows` met NaN (in any of its beams)."""
        if self.bad is None:
            return False
        return bool(self.bad.view(rows, -1)[row].any())
