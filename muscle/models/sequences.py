"""Training sequences: examples as tokens, and micro-batches of them.

Teachers and student read the same sequences, so a teacher's hidden state of position i is
the student's position i.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import accumulate, pairwise
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from muscle.errors import UserError
from muscle.models.encoding import Encoder
from muscle.types import TrainingExample


@dataclass(frozen=True)
class Sequences:
    """Tokenised examples: ids of sequence i, and the first position that is in the loss.

    `spans` are a chat's ranges of positions in the loss, a turn of the assistant's each, its
    end-of-turn token included; None for what is no chat: from `first` on, everything.
    """

    ids: list[np.ndarray]
    first: list[int]
    truncated: int = 0
    spans: list[tuple[tuple[int, int], ...] | None] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def targets(self, index: int) -> int:
        """How many tokens of a sequence are in the loss."""
        return sum(end - start for start, end in self.ranges(index))

    def size(self, index: int) -> int:
        """How many tokens of a sequence are run."""
        return len(self.ids[index])

    def ranges(self, index: int) -> tuple[tuple[int, int], ...]:
        """The ranges of a sequence's positions that are in the loss."""
        spans = None if self.spans is None else self.spans[index]
        return ((self.first[index], len(self.ids[index])),) if spans is None else spans

    def answers(self, index: int) -> list[list[int]]:
        """The tokens of a chat's turns without what ends them: the same in every template."""
        return [self.ids[index][start : end - 1].tolist() for start, end in self.ranges(index)]

    def all_targets(self) -> int:
        """How many tokens of all sequences are in the loss."""
        return sum(map(self.targets, range(len(self))))

    def collate(self, indices: Sequence[int], pad: int) -> "Batch":
        """One micro-batch of the given sequences, in their order."""
        return collate(self, indices, pad)

    def fingerprint(self) -> str:
        """A hash of every token and of what is in the loss: equal for equal data, tokenizer,
        length and `loss_on`. Of a chat it is a hash of the answers alone, which are what two
        templates have in common."""
        digest = hashlib.sha256()
        for index, (ids, first) in enumerate(zip(self.ids, self.first, strict=True)):
            if self.spans is not None and self.spans[index] is not None:
                digest.update(json.dumps(self.answers(index)).encode())
                continue
            digest.update(np.array([len(ids), first], dtype="<i8").tobytes())
            digest.update(ids.astype("<i8").tobytes())
        return digest.hexdigest()[:20]


class Moved:
    """What consists of tensors, mappings of tensors and such parts, and moves as a whole."""

    def to(self, device: torch.device | str) -> Self:
        """The same on a device."""
        return self.each(lambda tensor: tensor.to(device))

    def each(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same with `change` applied to every tensor in it."""

        def changed(value: Any) -> Any:
            if isinstance(value, Tensor):
                return change(value)
            if isinstance(value, Mapping):
                return {name: changed(part) for name, part in value.items()}
            return value.each(change) if isinstance(value, Moved) else value

        return replace(self, **{f.name: changed(getattr(self, f.name)) for f in fields(self)})  # type: ignore[type-var, arg-type]


@dataclass(frozen=True)
class Batch(Moved):
    """One micro-batch of B right-padded sequences, N tokens of it in the loss.

    input_ids, attention_mask [B, L]; `scored` [B, L-1] marks the positions whose next
    token is in the loss; gold, sequence [N] are those tokens and their rows. `teachers` are
    cached signals by name: final hidden states [N, D] at the same N positions. `old` are
    input_ids, attention_mask and scored of what the old teacher reads, where its chat template
    is another: N positions again, those of the same answers in the same order.
    """

    input_ids: Tensor
    attention_mask: Tensor
    scored: Tensor
    gold: Tensor
    sequence: Tensor
    teachers: Mapping[str, Tensor] = field(default_factory=dict)
    old: Mapping[str, Tensor] = field(default_factory=dict)


def tokenise(
    examples: Sequence[TrainingExample], tokenizer: Any, max_length: int, loss_on: str
) -> Sequences:
    """tokens(prompt + answer) + EOS for each example, cut from the left to max_length.

    The loss is on every token but the first (BOS, or the token nothing precedes) for
    loss_on "all", on the answer and EOS for "answer".

    A chat is its text alone, whole, with the loss on the assistant's turns.

    Raises:
        UserError: no examples, an example without an answer, a tokenizer without EOS, a chat
            longer than max_length.
    """
    eos = getattr(tokenizer, "eos_token_id", None)
    if eos is None:
        raise UserError("the tokenizer has no EOS token, so no answer could ever end")
    if not examples:
        raise UserError("there are no training examples")
    if any(example.turns is not None for example in examples):
        return _tokenise_chats(examples, tokenizer, max_length)
    pairs = Encoder(tokenizer).pairs([(e.prompt, e.answer) for e in examples])
    ids, first, truncated = [], [], 0
    for example, pair in zip(examples, pairs, strict=True):
        if isinstance(pair, str):
            raise UserError(f"training example {example.id!r}: {pair}")
        tokens = [*pair.context, *pair.continuation, eos]
        start = len(pair.context) if loss_on == "answer" else 1
        cut = max(0, len(tokens) - max_length)
        truncated += cut > 0
        ids.append(np.array(tokens[cut:], dtype=np.int64))
        first.append(max(1, start - cut))
    return Sequences(ids, first, truncated)


def _tokenise_chats(
    examples: Sequence[TrainingExample], tokenizer: Any, max_length: int
) -> Sequences:
    """Chats, piece by piece as a model meets them: what is said to it, what it is to write.

    Each piece goes on from all before it as `Encoder.chat_pairs` has it, so that a turn's tokens
    are those that generation after the same prompt would be scored by.
    """
    ids: list[np.ndarray] = []
    spans: list[tuple[tuple[int, int], ...] | None] = []
    for example, (tokens, ranges) in zip(examples, _chats(examples, tokenizer), strict=True):
        if len(tokens) > max_length:
            raise UserError(
                f"training chat {example.id!r} has {len(tokens)} tokens, more than "
                f"training.max_length {max_length}: chats are never cut"
            )
        ids.append(np.array(tokens, dtype=np.int64))
        spans.append(ranges)
    return Sequences(ids, [span[0][0] for span in spans if span], 0, spans)


def chat_lengths(examples: Sequence[TrainingExample], tokenizer: Any) -> list[int]:
    """How many tokens `tokenise` makes of each chat."""
    return [len(tokens) for tokens, _ in _chats(examples, tokenizer)]


def _chats(
    examples: Sequence[TrainingExample], tokenizer: Any
) -> list[tuple[list[int], tuple[tuple[int, int], ...]]]:
    """Each chat's tokens up to its last turn's end, and the ranges of its turns among them."""
    texts = []
    for example in examples:
        text, turns = example.prompt + example.answer, example.turns
        if not turns or turns[0][0] < 1:
            raise UserError(
                f"training chat {example.id!r}: nothing is asked before the first answer"
            )
        cuts = [0, *(place for turn in turns for place in turn)]
        texts.append([text[a:b] for a, b in pairwise(cuts)])
    found = []
    for example, parts in zip(examples, Encoder(tokenizer).pieces(texts), strict=True):
        if not all(parts):
            raise UserError(f"training chat {example.id!r}: a turn has no tokens")
        ends = list(accumulate(map(len, parts)))
        ranges = tuple((ends[n - 1], ends[n]) for n in range(1, len(parts), 2))
        found.append(([token for part in parts for token in part], ranges))
    return found


class Sized(Protocol):
    """What micro-batches are filled with."""

    def size(self, index: int) -> int:
        """How many tokens of a row are run."""
        ...


class Rows(Sized, Protocol):
    """What micro-batches are made of: sequences, or trees of sequences."""

    @property
    def truncated(self) -> int:
        """How many of them were cut."""
        ...

    def __len__(self) -> int: ...

    def targets(self, index: int) -> int:
        """How much a row counts in the mean that the loss is."""
        ...

    def all_targets(self) -> int:
        """`targets` of all rows."""
        ...

    def collate(self, indices: Sequence[int], pad: int) -> Any:
        """One micro-batch of these rows, in their order: a `Moved`."""
        ...


def micro_batches(
    data: Sized, indices: Sequence[int], tokens: int, workers: int = 1
) -> list[list[int]]:
    """Group sequences so that rows x longest stays within a token budget, longest first.

    A sequence longer than the budget gets a batch of its own. For several workers, who take
    turns, the batches are made as small as they can be without one more turn, so that an
    update that one batch would hold keeps all of them busy.
    """
    batches = _filled(data, indices, tokens)
    most = min(len(indices), math.ceil(len(batches) / workers) * workers)
    if workers == 1 or not batches:
        return batches
    low, high = data.size(batches[0][0]), tokens
    while low < high:
        budget = (low + high) // 2
        if len(_filled(data, indices, budget)) <= most:
            high = budget
        else:
            low = budget + 1
    return _filled(data, indices, max(low, high))


def _filled(data: Sized, indices: Sequence[int], tokens: int) -> list[list[int]]:
    batches: list[list[int]] = []
    for index in sorted(indices, key=lambda i: (-data.size(i), i)):
        longest = data.size(batches[-1][0]) if batches else 0
        if batches and (len(batches[-1]) + 1) * longest <= tokens:
            batches[-1].append(int(index))
        else:
            batches.append([int(index)])
    return batches


def collate(data: Sequences, indices: Sequence[int], pad: int) -> Batch:
    """One micro-batch of the given sequences, in their order."""
    rows = [data.ids[i] for i in indices]
    longest = max(map(len, rows))
    input_ids = torch.full((len(rows), longest), pad, dtype=torch.long)
    attention_mask = torch.zeros(len(rows), longest, dtype=torch.long)
    scored = torch.zeros(len(rows), longest - 1, dtype=torch.bool)
    for row, (index, tokens) in enumerate(zip(indices, rows, strict=True)):
        input_ids[row, : len(tokens)] = torch.from_numpy(tokens)
        attention_mask[row, : len(tokens)] = 1
        for start, end in data.ranges(index):
            scored[row, start - 1 : end - 1] = True
    sequence = torch.arange(len(rows))[:, None].expand_as(scored)[scored]
    return Batch(input_ids, attention_mask, scored, input_ids[:, 1:][scored], sequence)
