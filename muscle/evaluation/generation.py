"""`generate_until` with the harness's meaning, the same text whichever batch a row is in.

HFLM at batch size 1 is the reference: where a row stops must not depend on its
neighbours, so each row stops, and is cut, where it would have stopped alone.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from muscle.evaluation.padded import generate_padded
from muscle.evaluation.plan import Start, make_plan, truncated, written
from muscle.evaluation.scoring import OUT_OF_MEMORY
from muscle.evaluation.sharing import families
from muscle.models.structure import unwrap

if TYPE_CHECKING:
    from muscle.evaluation.sampling import Settings
    from muscle.evaluation.stopping import Stops
    from muscle.types import Output

HELD_TOKENS = 8192
"""Own tokens (after the shared prefix) of the rows decoded together: a step reads all
weights once, so it should serve many rows."""

STEP_COST = 16
"""What a decoding step costs beyond its rows, in tokens of a large batch."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A context to go on from, how, and what seeds its sampling."""

    context: list[int]
    generation: str
    seed_key: str


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    max_length: int,
    batch_tokens: int,
    seed: int = 0,
    continuous: bool = False,
    held_tokens: int | None = None,
) -> "list[Output | str]":
    """The text generated for each prompt, cut at its first stop string, in the order given.

    Contexts keep their last max_length - max_gen_toks tokens, as in the harness. Sampled
    rows are drawn from a generator seeded by (seed, seed_key) alone. Beginnings that
    prompts share are run once. Beams, and settings or architectures that
    `muscle.evaluation` does not know, go through transformers' generate.

    Args:
        batch_tokens: of one forward pass over prompts.
        continuous: greedy rows go through transformers' continuous batching, which is
            made for GPUs; sampled rows, other settings and models that it gets wrong go
            their usual way.
        held_tokens: of the rows decoded together, their prompts' own and new tokens;
            None: `HELD_TOKENS`, or `batch_tokens` if that is more.

    Returns:
        an `Output` for each prompt, which says whether the prompt lost its beginning and the
        answer its end; or, as a phrase, why it has none: settings that leave no room in the
        window, logits that are NaN, no memory.

    Raises:
        UserError: a setting that transformers does not know or refuses; continuous
            batching of a model that it does not take.
    """
    results: list[Output | str] = [""] * len(prompts)
    eos_id = tokenizer.eos_token_id
    eos = None if eos_id is None else tokenizer.decode(eos_id, skip_special_tokens=False)
    asks: dict[int, Start] = {}
    for i, prompt in enumerate(prompts):
        try:
            plan = make_plan(prompt.generation, eos, len(prompt.context))
            context = truncated(prompt.context, plan.max_new_tokens, max_length)
        except (ValueError, TypeError) as error:
            results[i] = str(error)
            continue
        shortened = len(context) < len(prompt.context)
        asks[i] = Start(context, plan, f"{seed}\0{prompt.seed_key}", shortened)
    manners: dict[str, list[int]] = defaultdict(list)
    for i, ask in asks.items():
        manners[ask.plan.manner].append(i)
    held_tokens = held_tokens or max(batch_tokens, HELD_TOKENS)
    for members in manners.values():
        rows = [asks[i] for i in members]
        found = _generate_alike(model, tokenizer, rows, batch_tokens, held_tokens, continuous)
        for i, result in zip(members, found, strict=True):
            results[i] = result
    return results


def _generate_alike(
    model: Any,
    tokenizer: Any,
    asks: Sequence[Start],
    batch_tokens: int,
    held_tokens: int,
    continuous: bool,
) -> "list[Output | str]":
    """Rows whose settings differ at most in their number of new tokens."""
    from muscle.evaluation.continuous import can_batch, generate_continuous
    from muscle.evaluation.sampling import eos_ids, settings
    from muscle.evaluation.stopping import Stops
    from muscle.evaluation.support import can_decode

    plan = asks[0].plan
    causal = unwrap(model)
    stops = Stops(plan.until, tokenizer, eos_ids(causal))
    chosen = settings(causal, plan.arguments, stops.eos_ids)
    if chosen is None or not can_decode(model):
        return generate_padded(model, tokenizer, asks, stops, batch_tokens)
    if continuous and chosen.plain and can_batch(causal):
        return generate_continuous(model, tokenizer, asks, stops)
    return _decode(model, tokenizer, asks, chosen, stops, batch_tokens, held_tokens)


def _decode(
    model: Any,
    tokenizer: Any,
    asks: Sequence[Start],
    settings: "Settings",
    stops: "Stops",
    batch_tokens: int,
    held_tokens: int,
) -> "list[Output | str]":
    """Our own loop, family by family."""
    import torch

    from muscle.evaluation.decoding import Decoder, Row
    from muscle.evaluation.sampling import Chooser
    from muscle.evaluation.support import shared_attention

    results: list[Output | str] = [OUT_OF_MEMORY] * len(asks)

    def on_end(row: Row, problem: str | None) -> None:
        text, ask = tokenizer.decode(row.made, skip_special_tokens=True), asks[row.number]
        output = written(text, ask.plan.until, row.stopped, ask.shortened)
        results[row.number] = problem or output

    decoder = Decoder(model, batch_tokens, held_tokens)
    chooser = Chooser(settings, decoder.device)
    cost = STEP_COST * max(ask.plan.max_new_tokens for ask in asks)
    with torch.inference_mode(), shared_attention(model):
        for family in families([ask.context for ask in asks], cost):
            rows = [
                Row(i, asks[i].context, asks[i].plan.max_new_tokens, asks[i].seed_key)
                for i in family.members
            ]
            try:
                decoder.share(rows[0].context[: family.shared])
            except torch.cuda.OutOfMemoryError:
                continue
            decoder.decode(rows, chooser, stops, on_end)
    return results
