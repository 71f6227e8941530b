"""Hooks into transformers' generate: stop each row by itself, and notice NaN."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, StoppingCriteria


class StopAtStrings(StoppingCriteria):
    """Ends each row at the step at which the harness would end it if it were alone.

    The harness looks for a stop string in the decoded last k + 2 generated tokens, where
    k is the stop string's own token count; `stopped_at` is the number of generated tokens
    up to there (or to EOS), and None for a row that ran to its limit.
    """

    def __init__(
        self,
        until: Sequence[str],
        tokenizer: Any,
        prompt_length: int,
        rows: int,
        eos_ids: frozenset[int],
    ) -> None:
        self.tokenizer = tokenizer
        self.prompt_length = prompt_length
        self.eos_ids = eos_ids
        self.stopped_at: list[int | None] = [None] * rows
        self.windows: dict[int, list[str]] = {}
        for stop in until:
            if stop:
                size = len(tokenizer.encode(stop, add_special_tokens=False)) + 2
                self.windows.setdefault(size, []).append(stop)

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:  # type: ignore[override]
        """[B, L] tokens so far -> [B], True for rows that are done.

        With beams there are more rows than prompts; as in the harness the first beam decides.
        """
        generated = input_ids[: len(self.stopped_at), self.prompt_length :]
        count = generated.shape[1]
        open_rows = [row for row, at in enumerate(self.stopped_at) if at is None]
        if open_rows:
            recent = generated[open_rows, -max(self.windows, default=1) :].tolist()
            for row in self._stopping(open_rows, recent):
                self.stopped_at[row] = count
        done = [at is not None for at in self.stopped_at]
        if len(done) != input_ids.shape[0]:
            done = [done[0]] * input_ids.shape[0]
        return torch.tensor(done, device=input_ids.device)

    def _stopping(self, rows: list[int], recent: list[list[int]]) -> set[int]:
        found = {
            row for row, last in zip(rows, recent, strict=True) if last and last[-1] in self.eos_ids
        }
        for size, stops in self.windows.items():
            texts = self.tokenizer.batch_decode([tokens[-size:] for tokens in recent])
            for row, text in zip(rows, texts, strict=True):
                if any(stop in text for stop in stops):
                    found.add(row)
        return found


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
