"""Log-likelihoods of continuations: shared tokens run once, the head only where it counts.

Shapes: B rows, L nodes of the longest row, D hidden size, N positions at which something
is scored, E scored tokens (several may be scored at one position), V vocabulary.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from muscle.evaluation.attention import TreeMasks, Trunk, TrunkCache, run_rows
from muscle.evaluation.batching import fill, halves, run_in_parts
from muscle.evaluation.packing import Group, plan_alone, plan_tree
from muscle.evaluation.trie import Chain, Ints, Row, make_chains, make_row
from muscle.models.encoding import Pair
from muscle.models.structure import project, unwrap
from muscle.types import Output

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

HEAD_ELEMENTS = {"cpu": 1 << 22, "cuda": 1 << 25}
"""Logits held at once, whatever the vocabulary: what stays near a CPU's cache, and 128 MiB
of fp32 on a GPU, whose kernels want many rows."""

OUT_OF_MEMORY = "it does not fit in the device's memory, even alone"


@dataclass
class Counts:
    """Tokens so far: those of all sequences one by one, those that ran, and padding."""

    given: int = 0
    run: int = 0
    padding: int = 0


@dataclass(frozen=True, slots=True)
class _Scored:
    """One distinct request: the tokens to run, of which the last n predict `target_n`."""

    tokens_L: Ints
    target_n: Ints

    @property
    def start(self) -> int:
        """The first position at which something is scored."""
        return len(self.tokens_L) - len(self.target_n)


@dataclass(frozen=True, slots=True)
class _Place:
    """One row of a batch: its nodes, and the chains they belong to."""

    row: Row
    chains: tuple[Chain, ...]

    @property
    def members(self) -> list[int]:
        """The numbers of all sequences in this row."""
        return [member for chain in self.chains for member in chain.members]

    def nodes(self) -> int:
        """L."""
        return len(self.row.token_L)


@dataclass
class Scorer:
    """Scores pairs under the active version of a model.

    Args:
        model: a causal LM.
        max_length: window in tokens.
        batch_tokens: rows x longest row of one forward pass, a trunk not counted.
        masks: how the model takes a tree; None runs each request alone.
        switch: of `rope_switch`.
        trunk: a prefix's keys and values, kept from call to call for one version.
        counts: of all calls.
    """

    model: Any
    max_length: int
    batch_tokens: int
    masks: TreeMasks | None = None
    switch: int | None = None
    trunk: Trunk = field(default_factory=Trunk)
    counts: Counts = field(default_factory=Counts)

    def score(self, pairs: Sequence[Pair]) -> list[Output | str]:
        """The log-likelihood and greediness of each pair's continuation, in the order given.

        As in the harness, a sequence longer than the window keeps its last max_length + 1
        tokens, of which the last one is only predicted. The log-softmax runs in fp32, the
        sum over tokens in double precision. A pair that occurs twice is run once.

        Returns:
            an `Output` for each pair, which says whether the context lost its beginning; or,
            as a phrase, why it has none: a continuation longer than the window, a
            log-likelihood that is not finite, no memory.
        """
        keys = [(tuple(pair.context), tuple(pair.continuation)) for pair in pairs]
        results: dict[Any, Output | str] = dict.fromkeys(keys, OUT_OF_MEMORY)
        short: dict[Any, _Scored] = {}
        long: dict[Any, _Scored] = {}  # beyond the switch: in forward passes of their own
        for key in results:
            n = len(key[1])
            if n > self.max_length:
                results[key] = (
                    f"the continuation has {n} tokens, more than the window of {self.max_length}"
                )
                continue
            ids_L = np.array((key[0] + key[1])[-(self.max_length + 1) :], dtype=np.int64)
            scored = _Scored(ids_L[:-1], ids_L[-n:])
            beyond = self.switch is not None and len(scored.tokens_L) > self.switch
            (long if beyond else short)[key] = scored
        for side, may_trunk in ((short, True), (long, False)):
            found = self._score(list(side.values()), may_trunk)
            results.update((key, found[i]) for i, key in enumerate(side) if i in found)
        return [self._with_loss(results[key], len(key[0]) + len(key[1])) for key in keys]

    def _with_loss(self, found: Output | str, tokens: int) -> Output | str:
        """A result with whether its sequence of so many tokens lost its beginning."""
        if isinstance(found, str) or tokens <= self.max_length + 1:
            return found
        return replace(found, truncated="prompt")

    def _score(self, sequences: list[_Scored], may_trunk: bool) -> dict[int, Output | str]:
        """Number of the sequence -> result, without those that did not fit in memory."""
        results: dict[int, Output | str] = {}
        if not sequences:
            return results
        self.counts.given += sum(len(s.tokens_L) for s in sequences)
        chains = make_chains([s.tokens_L for s in sequences], [s.start for s in sequences])
        if self.masks is None:
            groups = plan_alone(chains)
        else:
            groups = plan_tree(chains, self.batch_tokens, self.trunk.tokens_P, may_trunk)
        for group in groups:
            trunk = self._grow(group)

            def run(batch: list[_Place], trunk: int = trunk) -> None:
                results.update(self._run(batch, trunk, sequences))

            def split(batch: list[_Place], trunk: int = trunk) -> list[list[_Place]]:
                return _split(batch, trunk)

            places = [_place((chains[number] for number in row), trunk) for row in group.rows]
            for batch in fill(places, _Place.nodes, self.batch_tokens):
                run_in_parts(batch, run, split)
        return results

    def _grow(self, group: Group) -> int:
        """Have the group's trunk at hand; its length, or 0 if it does not fit in memory."""
        if not len(group.trunk_L):
            return 0
        assert self.masks is not None
        try:
            self.counts.run += self.trunk.extend(self.model, self.masks, group.trunk_L)
        except torch.cuda.OutOfMemoryError:
            self.trunk.clear()
            return 0
        return len(group.trunk_L)

    def _run(
        self, batch: list[_Place], trunk: int, sequences: list[_Scored]
    ) -> dict[int, Output | str]:
        results = self._run_once(batch, trunk, sequences)
        # A masked NaN still reaches its neighbours, as 0 x NaN is NaN: those run again, alone.
        again = [
            _place([Chain(sequences[m].tokens_L, (m,), sequences[m].start)], trunk)
            for members in (place.members for place in batch)
            if len(members) > 1 and any(isinstance(results[m], str) for m in members)
            for m in members
        ]
        for part in fill(again, _Place.nodes, self.batch_tokens):
            results.update(self._run_once(part, trunk, sequences))
        return results

    def _run_once(
        self, batch: list[_Place], trunk: int, sequences: list[_Scored]
    ) -> dict[int, Output | str]:
        length = max(place.nodes() for place in batch)
        members, columns, targets = [], [], []
        for b, place in enumerate(batch):
            for chain, path in zip(place.chains, place.row.paths, strict=True):
                for member in chain.members:
                    scored = sequences[member]
                    depths = slice(scored.start - trunk, len(scored.tokens_L) - trunk)
                    members.append(member)
                    columns.append(b * length + path[depths])
                    targets.append(scored.target_n)
        nodes = sum(place.nodes() for place in batch)
        self.counts.run += nodes
        self.counts.padding += len(batch) * length - nodes
        past = TrunkCache(self.trunk, trunk) if trunk else None
        with torch.inference_mode():
            hidden_BLD = run_rows(self.model, self.masks, [place.row for place in batch], past)
            logprob_E, greedy_E = _token_scores(
                self.model,
                hidden_BLD.flatten(0, 1),
                np.concatenate(columns),
                np.concatenate(targets),
            )
        first = np.cumsum([0, *(len(target) for target in targets[:-1])])
        totals = np.add.reduceat(logprob_E, first).tolist()
        greedy = np.logical_and.reduceat(greedy_E, first).tolist()
        return {
            member: Output(loglikelihood=total, is_greedy=is_greedy)
            if math.isfinite(total)
            else f"its log-likelihood is {total}"
            for member, total, is_greedy in zip(members, totals, greedy, strict=True)
        }


def _place(chains: Iterable[Chain], trunk: int) -> _Place:
    chosen = tuple(chains)
    return _Place(make_row(chosen, trunk), chosen)


def _split(batch: list[_Place], trunk: int) -> list[list[_Place]]:
    """Half of the rows each; of one row, half of its chains each; nothing of one chain."""
    if len(batch) > 1:
        return halves(batch)
    return [[_place(part, trunk)] for part in halves(list(batch[0].chains))]


def _token_scores(
    model: Any, hidden_XD: Tensor, place_E: Ints, target_E: Ints
) -> tuple[Floats, Bools]:
    """Each target's log-probability (double) at its place, and whether it is the argmax.

    A place at which several targets are scored goes through the head once.
    """
    vocabulary = unwrap(model).get_output_embeddings().weight.shape[0]
    place_N, position_E = np.unique(place_E, return_inverse=True)
    order_E = np.argsort(position_E, kind="stable")
    position_E, target_E = position_E[order_E], target_E[order_E]
    logprobs, greedy = [], []
    device = hidden_XD.device
    chunk = max(1, HEAD_ELEMENTS[device.type] // int(vocabulary))
    hidden_ND = hidden_XD[torch.from_numpy(place_N).to(device)]
    for start in range(0, len(place_N), chunk):
        low, high = np.searchsorted(position_E, [start, start + chunk])
        row_e = torch.from_numpy(position_E[low:high] - start).to(device)
        target_e = torch.from_numpy(target_E[low:high]).to(device)
        logits_NV = project(model, hidden_ND[start : start + chunk])
        best_N = logits_NV.amax(dim=-1)
        logit_e = logits_NV[row_e, target_e]
        # Only what ties with the best can be the argmax, which is the first of equals.
        greedy_e = logit_e == best_N[row_e]
        hits = greedy_e.nonzero()[:, 0]
        greedy_e[hits] = logits_NV[row_e[hits]].argmax(dim=-1) == target_e[hits]
        # The log-softmax in place: a second [N, V] costs more than the arithmetic.
        sum_N = logits_NV.sub_(best_N[:, None]).exp_().sum(dim=-1)
        logprobs.append(((logit_e - best_N[row_e]) - sum_N.log()[row_e]).double())
        greedy.append(greedy_e)
    logprob_E = np.empty(len(order_E))
    greedy_E = np.empty(len(order_E), dtype=bool)
    logprob_E[order_E] = torch.cat(logprobs).cpu().numpy()
    greedy_E[order_E] = torch.cat(greedy).cpu().numpy()
    return logprob_E, greedy_E
