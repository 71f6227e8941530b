"""`generate_until` with the harness's meaning, the same text whichever batch a row is in.

HFLM at batch size 1 is the reference: where a row stops must not depend on its
neighbours, so each row stops, and is cut, where it would have stopped alone.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from muscle.errors import UserError
from muscle.evaluation.batching import fill, run_in_memory
from muscle.evaluation.scoring import OUT_OF_MEMORY
from muscle.models.structure import unwrap
from muscle.types import Output

if TYPE_CHECKING:
    from torch import Tensor

DEFAULT_MAX_GEN_TOKS = 256

_TOKEN_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")

# With these alone, left padding cannot change a row's text. (no_repeat_ngram_size sees
# padding as tokens, but could only forbid a special token after another one.)
_PADDING_SAFE = {"do_sample", "temperature", "no_repeat_ngram_size"}


@dataclass(frozen=True, slots=True)
class Plan:
    """One request's decoding: stop strings (EOS included), new tokens, arguments of generate."""

    until: tuple[str, ...]
    max_new_tokens: int
    arguments: dict[str, Any]

    @property
    def sampled(self) -> bool:
        return bool(self.arguments.get("do_sample"))

    @property
    def alone(self) -> bool:
        """Sampling draws from one generator and beams stop together: one row at a time."""
        return self.sampled or int(self.arguments.get("num_beams", 1)) > 1


@dataclass(frozen=True, slots=True)
class Prompt:
    """A context to go on from, how, and what seeds its sampling."""

    context: list[int]
    generation: str
    seed_key: str


def plan(generation: str, eos: str | None, context_length: int) -> Plan:
    """The harness's reading of `gen_kwargs` (a JSON object).

    Token limits have the harness's aliases and default (256); without `do_sample` a
    temperature above 0 samples and 0 is greedy; EOS is always a stop string.

    Raises:
        ValueError: not an object, several sequences asked for, or no room for new tokens.
    """
    kwargs = json.loads(generation) if generation else {}
    if not isinstance(kwargs, dict):
        raise ValueError("its generation settings are not a JSON object")
    until = kwargs.pop("until", None) or []
    until = [until] if isinstance(until, str) else list(until)
    if eos is not None and eos not in until:
        until.append(eos)
    limits = [kwargs.pop(name, None) for name in _TOKEN_LIMITS]
    limit = int(next((value for value in limits if value is not None), DEFAULT_MAX_GEN_TOKS))
    if kwargs.get("max_length") is not None:  # of prompt and answer together
        limit = int(kwargs["max_length"]) - context_length
    kwargs.pop("max_length", None)
    kwargs.pop("use_cache", None)
    if int(kwargs.get("num_return_sequences", 1)) != 1:
        raise ValueError("num_return_sequences must be 1")
    if limit < 1:
        raise ValueError("its generation settings leave no room for a token")
    temperature = float(kwargs.get("temperature") or 0.0)
    sampled = kwargs.get("do_sample")
    kwargs["do_sample"] = temperature > 0.0 if sampled is None else bool(sampled)
    if not kwargs["do_sample"]:
        kwargs.pop("temperature", None)
    return Plan(tuple(until), limit, kwargs)


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    max_length: int,
    batch_tokens: int,
    seed: int = 0,
) -> "list[Output | str]":
    """The text generated for each prompt, cut at its first stop string, in the order given.

    Contexts keep their last max_length - max_gen_toks tokens, as in the harness. Sampled
    rows are drawn from a generator seeded by (seed, seed_key) alone.

    Returns:
        an `Output` for each prompt; or, as a phrase, why it has none: settings that leave
        no room in the window, logits that are NaN, no memory.

    Raises:
        UserError: a setting that transformers does not know or refuses.
    """
    results: list[Output | str] = [""] * len(prompts)
    eos_id = tokenizer.eos_token_id
    eos = None if eos_id is None else tokenizer.decode(eos_id, skip_special_tokens=False)
    plans: dict[int, Plan] = {}
    contexts: dict[int, list[int]] = {}
    groups: dict[Any, list[int]] = defaultdict(list)
    for i, prompt in enumerate(prompts):
        try:
            plans[i] = plan(prompt.generation, eos, len(prompt.context))
            contexts[i] = _truncated(prompt.context, plans[i].max_new_tokens, max_length)
        except (ValueError, TypeError) as error:
            results[i] = str(error)
            continue
        groups[_group(plans[i], prompt, contexts[i], i)].append(i)

    def length(i: int) -> int:
        return len(contexts[i]) + plans[i].max_new_tokens

    def run(batch: list[int]) -> "list[Output | str]":
        first = batch[0]
        key = f"{seed}\0{prompts[first].seed_key}" if plans[first].sampled else None
        return _generate_batch(model, tokenizer, [contexts[i] for i in batch], plans[first], key)

    too_big: Output | str = OUT_OF_MEMORY
    for members in groups.values():
        for batch in fill(members, length, batch_tokens):
            for i, result in zip(batch, run_in_memory(batch, run, too_big), strict=True):
                results[i] = result
    return results


def _truncated(context: list[int], max_new_tokens: int, max_length: int) -> list[int]:
    room = max_length - max_new_tokens
    if room < 1:
        raise ValueError(
            f"max_gen_toks {max_new_tokens} leaves no room for a prompt in the window of "
            f"{max_length} tokens: set a smaller max_gen_toks"
        )
    if not context:
        raise ValueError("the context has no tokens")
    return context[-room:]


def _group(plan: Plan, prompt: Prompt, context: list[int], row: int) -> tuple[Any, ...]:
    """Rows with the same key may share a batch."""
    key = (prompt.generation, plan.max_new_tokens)
    if plan.alone:
        return (*key, "row", row)
    if set(plan.arguments) <= _PADDING_SAFE:
        return key
    # E.g. a repetition penalty also counts padding: share a batch without padding only.
    return (*key, "length", len(context))


def _generate_batch(
    model: Any, tokenizer: Any, contexts: list[list[int]], plan: Plan, seed_key: str | None
) -> "list[Output | str]":
    """One call of transformers' generate on left-padded contexts with one plan."""
    import torch
    from transformers import LogitsProcessorList, StoppingCriteriaList

    from muscle.evaluation.stopping import NanWatch, StopAtStrings

    causal = unwrap(model)
    longest = max(map(len, contexts))
    pad = padding_id(tokenizer)
    padded = [[pad] * (longest - len(row)) + row for row in contexts]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in contexts]
    stops = StopAtStrings(plan.until, tokenizer, longest, len(contexts), eos_ids(causal))
    watch = NanWatch()
    try:
        with torch.inference_mode(), _seeded(seed_key, causal.device):
            out_BL: Tensor = causal.generate(
                input_ids=torch.tensor(padded, device=causal.device),
                attention_mask=torch.tensor(mask, device=causal.device),
                max_length=longest + plan.max_new_tokens,
                pad_token_id=pad,
                use_cache=True,
                stopping_criteria=StoppingCriteriaList([stops]),
                logits_processor=LogitsProcessorList([watch]),
                **plan.arguments,
            )
    except (ValueError, TypeError) as error:  # transformers refuses an argument
        text = " ".join(str(error).split())[:300]
        raise UserError(f"generation settings {plan.arguments}: {text}") from error
    results: list[Output | str] = []
    for row, tokens in enumerate(out_BL[:, longest:].tolist()):
        if watch.is_bad(row, len(contexts)):
            results.append("the model's logits are NaN")
            continue
        text = tokenizer.decode(tokens[: stops.stopped_at[row]], skip_special_tokens=True)
        results.append(Output(text=cut(text, plan.until)))
    return results


def cut(text: str, until: Sequence[str]) -> str:
    """The text before the stop strings, which the harness removes one after the other."""
    for stop in until:
        if stop:
            text = text.split(stop)[0]
    return text


def padding_id(tokenizer: Any) -> int:
    """The harness's choice of a padding token: its own, else unk, else EOS, else 0."""
    for name in ("pad_token_id", "unk_token_id", "eos_token_id"):
        value = getattr(tokenizer, name, None)
        if value is not None:
            return int(value)
    return 0


def eos_ids(causal: Any) -> frozenset[int]:
    """The token ids at which transformers' generate ends a row."""
    ids = causal.generation_config.eos_token_id
    if ids is None:
        return frozenset()
    return frozenset(ids if isinstance(ids, list | tuple) else [ids])


def _seeded(seed_key: str | None, device: Any) -> Any:
    """A context in which torch draws from `seed_key` alone; None draws nothing."""
    from contextlib import ExitStack

    import torch

    stack = ExitStack()
    if seed_key is not None:
        cuda = [device.index or 0] if device.type == "cuda" else []
        stack.enter_context(torch.random.fork_rng(devices=cuda))
        torch.manual_seed(int.from_bytes(hashlib.sha256(seed_key.encode()).digest()[:8]) >> 1)
    return stack
