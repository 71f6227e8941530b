"""Log-likelihoods of continuations: right-padded batches, the head only where it counts.

Shapes: B rows, L tokens of the longest row, D hidden size, N scored positions of a
batch, V vocabulary.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from muscle.evaluation.batching import fill, run_in_memory
from muscle.models.encoding import Pair
from muscle.models.structure import hidden_states, project, unwrap
from muscle.types import Output

if TYPE_CHECKING:
    from torch import Tensor

HEAD_ELEMENTS = 1 << 25
"""Logits held at once: 128 MiB of fp32, whatever the vocabulary."""

OUT_OF_MEMORY = "it does not fit in the device's memory, even alone"


def score(
    model: Any, pairs: Sequence[Pair], max_length: int, batch_tokens: int
) -> "list[Output | str]":
    """The log-likelihood and greediness of each pair's continuation, in the order given.

    As in the harness, a sequence longer than the window keeps its last max_length + 1
    tokens, of which the last one is only predicted. The log-softmax runs in fp32, the
    sum over tokens in double precision.

    Returns:
        an `Output` for each pair; or, as a phrase, why it has none: a continuation longer
        than the window, a log-likelihood that is not finite, no memory.
    """
    results: list[Output | str] = [""] * len(pairs)
    fitting: list[int] = []
    for i, pair in enumerate(pairs):
        if len(pair.continuation) > max_length:
            results[i] = (
                f"the continuation has {len(pair.continuation)} tokens, more than the window "
                f"of {max_length}"
            )
        else:
            fitting.append(i)

    def length(i: int) -> int:
        return min(len(pairs[i].context) + len(pairs[i].continuation) - 1, max_length)

    def run(batch: list[int]) -> "list[Output | str]":
        return _score_batch(model, [pairs[i] for i in batch], max_length)

    too_big: Output | str = OUT_OF_MEMORY
    for batch in fill(fitting, length, batch_tokens):
        for i, result in zip(batch, run_in_memory(batch, run, too_big), strict=True):
            results[i] = result
    return results


def _score_batch(model: Any, pairs: list[Pair], max_length: int) -> "list[Output | str]":
    import torch

    inputs = [(pair.context + pair.continuation)[-(max_length + 1) :][:-1] for pair in pairs]
    longest = max(map(len, inputs))
    device = model.device
    # Right padding needs no mask: in a causal model no token sees what follows it.
    ids_BL = torch.tensor([row + [0] * (longest - len(row)) for row in inputs], device=device)
    counts = [len(pair.continuation) for pair in pairs]
    rows: list[int] = []
    columns: list[int] = []
    targets: list[int] = []
    for b, (row, pair) in enumerate(zip(inputs, pairs, strict=True)):
        n = len(pair.continuation)
        rows += [b] * n
        columns += range(len(row) - n, len(row))
        targets += pair.continuation
    with torch.inference_mode():
        hidden_BLD = hidden_states(model, ids_BL)
        hidden_ND = hidden_BLD[
            torch.tensor(rows, device=device), torch.tensor(columns, device=device)
        ]
        del hidden_BLD
        logprob_N, greedy_N = _token_scores(model, hidden_ND, torch.tensor(targets, device=device))
    results: list[Output | str] = []
    for logprobs, greedy in zip(logprob_N.split(counts), greedy_N.split(counts), strict=True):
        total = float(logprobs.sum())
        if math.isfinite(total):
            results.append(Output(loglikelihood=total, is_greedy=bool(greedy.all())))
        else:
            results.append(f"its log-likelihood is {total}")
    return results


def _token_scores(model: Any, hidden_ND: "Tensor", target_N: "Tensor") -> "tuple[Tensor, Tensor]":
    """For each position the target's log-probability (double) and whether it is the argmax."""
    import torch

    vocabulary = unwrap(model).get_output_embeddings().weight.shape[0]
    chunk = max(1, HEAD_ELEMENTS // int(vocabulary))
    logprobs, greedy = [], []
    for hidden, target in zip(hidden_ND.split(chunk), target_N.split(chunk), strict=True):
        logprob_NV = torch.log_softmax(project(model, hidden), dim=-1)
        logprobs.append(logprob_NV.gather(1, target[:, None])[:, 0].double())
        greedy.append(logprob_NV.argmax(dim=-1) == target)
    return torch.cat(logprobs).cpu(), torch.cat(greedy).cpu()
