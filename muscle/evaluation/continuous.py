"""Greedy generation through transformers' continuous batching: a paged cache, for GPUs."""

import math
from collections.abc import Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from muscle.errors import UserError
from muscle.evaluation.plan import NAN, Start, written
from muscle.models.structure import unwrap

if TYPE_CHECKING:
    from muscle.evaluation.stopping import Stops
    from muscle.types import Output


CPU_ROWS = 8
CPU_BATCH_TOKENS = 512
"""On a CPU, where it only runs for the sake of equal answers."""


def can_batch(causal: Any) -> bool:
    """False for Gemma 2, whose soft-capped attention the paged kinds leave out."""
    config = getattr(causal.config, "text_config", None) or causal.config
    return getattr(config, "attn_logit_softcapping", None) is None


def generate_continuous(
    model: Any, tokenizer: Any, asks: Sequence[Start], stops: "Stops"
) -> "list[Output | str]":
    """The greedy text of each ask, or why it has none, in the order given.

    It knows no stop strings, so rows are watched token by token and cancelled where they
    stop.

    Raises:
        UserError: an architecture or attention that cannot be batched so.
    """
    import torch
    from transformers import ContinuousBatchingConfig
    from transformers.utils import is_flash_attn_2_available

    causal = unwrap(model)
    settings = deepcopy(causal.generation_config)
    settings.do_sample = False
    # Flash attention has no fp32, and by itself transformers would fetch kernels from the hub.
    flash = causal.dtype != torch.float32 and is_flash_attn_2_available()
    config = ContinuousBatchingConfig(return_logprobs=True, auto_switch_to_flash=flash)
    if causal.device.type == "cpu":
        # Else it fills nine tenths of the machine's memory.
        longest = max(len(ask.context) + ask.plan.max_new_tokens for ask in asks)
        config.num_blocks = CPU_ROWS * (longest // config.page_size + 2)
        config.max_batch_tokens = CPU_BATCH_TOKENS
    try:
        manager = causal.init_continuous_batching(settings, config)
    except ValueError as error:
        raise UserError(f"continuous batching: {error}") from error
    watches = {str(i): _Watch(stops, ask.plan.max_new_tokens) for i, ask in enumerate(asks)}
    manager.start()
    try:
        # Neighbours that begin alike find each other's blocks of the cache.
        for i in sorted(range(len(asks)), key=lambda i: asks[i].context):
            manager.add_request(
                asks[i].context,
                request_id=str(i),
                max_new_tokens=asks[i].plan.max_new_tokens,
                streaming=True,
            )
        _follow(manager, watches)
    finally:
        manager.stop(block=True, hard_stop=True)
        manager.destroy()
    results: list[Output | str] = []
    for watch, ask in zip(watches.values(), asks, strict=True):
        text = tokenizer.decode(watch.made, skip_special_tokens=True)
        output = written(text, ask.plan.until, watch.stopped, ask.shortened)
        results.append(watch.problem or output)
    return results


class _Watch:
    """What has come of one request."""

    def __init__(self, stops: "Stops", limit: int) -> None:
        self.stops, self.limit = stops, limit
        self.made: list[int] = []
        self.ended = self.stopped = False
        self.problem: str | None = None

    def see(self, tokens: Sequence[int]) -> None:
        """All tokens generated so far; keeps those up to where the row stops."""
        while not self.ended and len(self.made) < len(tokens):
            self.made = list(tokens[: len(self.made) + 1])
            self.stopped = self.stops([self.made])[0]
            self.ended = self.stopped or len(self.made) >= self.limit

    def fail(self, problem: str) -> None:
        """There will be no text."""
        self.ended, self.problem = True, problem


def _follow(manager: Any, watches: dict[str, _Watch]) -> None:
    """Until every row has ended; a row that stops early is cancelled."""
    open_rows = set(watches)
    while open_rows:
        result = manager.get_result(timeout=1)
        if result is None:
            if manager.is_running() and manager.background_thread_status.fatal_error is None:
                continue
            fatal = manager.background_thread_status.fatal_error or "it stopped"
            for name in open_rows:
                watches[name].fail(f"continuous batching failed: {fatal}")
            return
        watch, name = watches[result.request_id], result.request_id
        if name not in open_rows:
            continue
        if result.error is not None:
            watch.fail(f"continuous batching failed: {result.error}")
        elif any(map(math.isnan, result.logprobs)):
            watch.fail(NAN)
        watch.see(result.generated_tokens)
        if result.is_finished() and not watch.ended:
            watch.ended = watch.stopped = True
        if watch.ended:
            open_rows.remove(name)
            if not result.is_finished():
                manager.cancel_request(name)
