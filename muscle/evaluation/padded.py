"""transformers' own generate on left-padded batches: every setting, every architecture."""

from collections import defaultdict
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING, Any

from muscle.errors import UserError
from muscle.evaluation.batching import fill, halves, run_in_parts
from muscle.evaluation.plan import NAN, Start, written
from muscle.evaluation.scoring import OUT_OF_MEMORY
from muscle.models.structure import unwrap

if TYPE_CHECKING:
    from torch import Tensor

    from muscle.evaluation.stopping import Stops
    from muscle.types import Output

# With these alone, left padding cannot change a row's text. (no_repeat_ngram_size sees
# padding as tokens, but could only forbid a special token after another one.)
_PADDING_SAFE = {"do_sample", "temperature", "no_repeat_ngram_size"}


def generate_padded(
    model: Any,
    tokenizer: Any,
    asks: Sequence[Start],
    stops: "Stops",
    batch_tokens: int,
) -> "list[Output | str]":
    """The text of each ask (of one manner), or why it has none, in the order given.

    Raises:
        UserError: a setting that transformers does not know or refuses.
    """
    groups: dict[Any, list[int]] = defaultdict(list)
    for i, ask in enumerate(asks):
        groups[_group(ask, i)].append(i)

    def length(i: int) -> int:
        return len(asks[i].context) + asks[i].plan.max_new_tokens

    results: list[Output | str] = [OUT_OF_MEMORY] * len(asks)

    def run(batch: list[int]) -> None:
        found = _generate_batch(model, tokenizer, [asks[i] for i in batch], stops)
        for i, result in zip(batch, found, strict=True):
            results[i] = result

    for members in groups.values():
        for batch in fill(members, length, batch_tokens):
            run_in_parts(batch, run, halves)
    return results


def _group(ask: Start, number: int) -> tuple[Any, ...]:
    """Asks with the same key may share a batch."""
    if ask.plan.alone:
        return ("row", number)
    if set(ask.plan.arguments) <= _PADDING_SAFE:
        return (ask.plan.max_new_tokens,)
    # E.g. a repetition penalty also counts padding: share a batch without padding only.
    return (ask.plan.max_new_tokens, len(ask.context))


def _generate_batch(
    model: Any, tokenizer: Any, asks: list[Start], stops: "Stops"
) -> "list[Output | str]":
    """One call of transformers' generate on left-padded contexts with one plan."""
    import torch
    from transformers import LogitsProcessorList, StoppingCriteriaList

    from muscle.evaluation.stopping import NanWatch, StopAtStrings

    causal = unwrap(model)
    plan = asks[0].plan
    longest = max(len(ask.context) for ask in asks)
    pad = padding_id(tokenizer)
    padded = [[pad] * (longest - len(ask.context)) + ask.context for ask in asks]
    mask = [[0] * (longest - len(ask.context)) + [1] * len(ask.context) for ask in asks]
    stop = StopAtStrings(stops, longest, len(asks))
    watch = NanWatch()
    seed_key = asks[0].seed_key if plan.sampled else None
    try:
        with torch.inference_mode(), _seeded(seed_key, causal.device):
            out_BL: Tensor = causal.generate(
                input_ids=torch.tensor(padded, device=causal.device),
                attention_mask=torch.tensor(mask, device=causal.device),
                max_length=longest + plan.max_new_tokens,
                pad_token_id=pad,
                use_cache=True,
                stopping_criteria=StoppingCriteriaList([stop]),
                logits_processor=LogitsProcessorList([watch]),
                **plan.arguments,
            )
    except (ValueError, TypeError) as error:  # transformers refuses an argument
        text = " ".join(str(error).split())[:300]
        raise UserError(f"generation settings {plan.arguments}: {text}") from error
    results: list[Output | str] = []
    for row, tokens in enumerate(out_BL[:, longest:].tolist()):
        if watch.is_bad(row, len(asks)):
            results.append(NAN)
            continue
        text = tokenizer.decode(tokens[: stop.stopped_at[row]], skip_special_tokens=True)
        # Beams end by their own rule, which only shows in what they leave.
        beams_ended = len(tokens) < plan.max_new_tokens or not stops.eos_ids.isdisjoint(tokens)
        ended = stop.stopped_at[row] is not None or beams_ended
        results.append(written(text, plan.until, ended, asks[row].shortened))
    return results


def padding_id(tokenizer: Any) -> int:
    """The harness's choice of a padding token: its own, else unk, else EOS, else 0."""
    for name in ("pad_token_id", "unk_token_id", "eos_token_id"):
        value = getattr(tokenizer, name, None)
        if value is not None:
            return int(value)
    return 0


def _seeded(seed_key: str | None, device: Any) -> AbstractContextManager[Any]:
    """A context in which torch draws from `seed_key` alone; None draws nothing."""
    import torch

    from muscle.evaluation.sampling import seed_number

    stack = ExitStack()
    if seed_key is not None:
        cuda = [device.index or 0] if device.type == "cuda" else []
        stack.enter_context(torch.random.fork_rng(devices=cuda))
        torch.manual_seed(seed_number(seed_key))
    return stack
