"""One base model, all its adapters: `Query`s in, `Answer`s out.

The numbers are those of lm-evaluation-harness's HFLM (fp32, `logits_cache=False`, batch
size 1) and do not depend on which queries share a batch. Every query gets an answer: one
that cannot be scored (an empty continuation, one longer than the window, NaN) has
`error` set and no outputs.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from muscle.copies import fetch
from muscle.evaluation.generation import Prompt, generate
from muscle.evaluation.job import BaseJob, EvaluateJob
from muscle.models import (
    attach_adapter,
    check_adapter,
    check_structure,
    chosen_window,
    load_base,
    load_tokenizer,
    using_adapter,
)
from muscle.models.encoding import Encoder
from muscle.types import SCORED, Answer, Output, Query, Request, unanswered

Place = tuple[int, int]
"""(query, request): where an output belongs."""


BATCH_TOKENS = {"cpu": 1024, "cuda": 16384}
"""Measured on small models: on a CPU larger batches fall out of the cache (twice as slow
at 16,384); on a GPU they keep it busy."""


class Engine:
    """Loads one base and its adapters once; `answer` runs any of its versions.

    Args:
        model: directory, hub id or `testbed:NAME` of the base.
        revision: of a hub model.
        adapters: version name -> adapter directory, None for the bare base.
        dtype: "float32", "bfloat16" or "float16", of the base's weights. Adapters stay in
            fp32, as PEFT loads them.
        batch_tokens: rows x longest row of one forward (for generation prompt and new
            tokens together); None: `BATCH_TOKENS` of the device.
        max_length: window in tokens; default the model's own.
        device: default "cuda" where there is one, else "cpu".
        threads: CPU threads of torch, for the whole process; None leaves them.
        seed: of sampled generation, together with the query's id and the request's place.
        base_fingerprint: of `fingerprint_base`; given, adapters that name another base in
            their muscle.json are refused.
        continuous: write answers by transformers' continuous batching (GPU).
        tree: run what requests share once, where the model is known to allow it; False
            runs each request alone, for comparison.

    `notes` has remarks about this model for the user, to be shown once.

    Raises:
        UserError: anything about model, adapters or settings that the user can mend.
    """

    def __init__(
        self,
        model: str,
        revision: str | None,
        adapters: Mapping[str, str | None],
        dtype: str,
        batch_tokens: int | None,
        max_length: int | None = None,
        device: str | None = None,
        threads: int | None = None,
        seed: int = 0,
        base_fingerprint: str | None = None,
        continuous: bool = False,
        tree: bool = True,
    ) -> None:
        import torch

        from muscle.evaluation.attention import rope_switch, tree_masks
        from muscle.evaluation.scoring import Scorer

        if threads is not None:
            torch.set_num_threads(threads)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.tokenizer = load_tokenizer(model, revision)
        base = load_base(model, revision, dtype, device)
        check_structure(base)
        self.max_length = chosen_window(model, base.config, self.tokenizer, max_length)
        self.seed = seed
        self.continuous = continuous
        self.encoder = Encoder(self.tokenizer)
        self.model: Any = base
        masks = tree_masks(base) if tree else None
        self.notes: tuple[str, ...] = (masks,) if isinstance(masks, str) else ()
        self._adapter_names: dict[str, str | None] = {}
        for number, (version, path) in enumerate(adapters.items()):
            if path is None:
                self._adapter_names[version] = None
                continue
            check_adapter(path, model, base_fingerprint, base.config)
            # A version may be called "v1.5", but a PEFT adapter's name takes no dot.
            name = f"version{number}"
            self.model = attach_adapter(self.model, path, name)
            self._adapter_names[version] = name
        self.model.eval()
        self.scorer = Scorer(
            self.model,
            self.max_length,
            batch_tokens or BATCH_TOKENS[self.model.device.type],
            None if isinstance(masks, str) else masks,
            rope_switch(base),
        )
        self._trunk_of: str | None = None

    @property
    def versions(self) -> tuple[str, ...]:
        """The versions this engine can answer for."""
        return tuple(self._adapter_names)

    @property
    def batch_tokens(self) -> int:
        """The token budget of a batch; may be changed between calls."""
        return self.scorer.batch_tokens

    @batch_tokens.setter
    def batch_tokens(self, value: int) -> None:
        self.scorer.batch_tokens = value

    def answer(self, version: str, queries: Sequence[Query]) -> list[Answer]:
        """Each query's answer under one version, in the order given.

        Raises:
            KeyError: no such version.
        """
        name = self._adapter_names[version]
        results: dict[Place, Output | str] = {}
        if version != self._trunk_of:
            self.scorer.trunk.clear()
            self._trunk_of = version
        with using_adapter(self.model, name):
            results.update(self._score(queries))
            results.update(self._generate(queries))
        return [_assemble(query, q, results) for q, query in enumerate(queries)]

    def _score(self, queries: Sequence[Query]) -> dict[Place, Output | str]:
        """Choices and whole documents, whose windows are scored like choices."""
        places, requests = _requests(queries, *SCORED)
        pairs = self.encoder.scored(requests, _are_chats(queries, places))
        parts = [pair if isinstance(pair, str) else [pair] for pair in pairs]
        rolling, requests = _requests(queries, "loglikelihood_rolling")
        parts += self.encoder.windows([r.context for r in requests], self.max_length)
        scored = iter(
            self.scorer.score(
                [pair for part in parts if not isinstance(part, str) for pair in part]
            )
        )
        results: dict[Place, Output | str] = {}
        for number, (place, part) in enumerate(zip([*places, *rolling], parts, strict=True)):
            if isinstance(part, str):
                results[place] = part
            elif number < len(places):
                results[place] = next(scored)
            else:
                results[place] = _total([next(scored) for _ in part])
        return results

    def _generate(self, queries: Sequence[Query]) -> dict[Place, Output | str]:
        places, requests = _requests(queries, "generate_until")
        texts = [r.context for r in requests]
        contexts = self.encoder.begun(texts, _are_chats(queries, places))
        prompts = [
            Prompt(ids, request.generation, f"{queries[q].id}\0{r}")
            for (q, r), ids, request in zip(places, contexts, requests, strict=True)
        ]
        outputs = generate(
            self.model,
            self.tokenizer,
            prompts,
            self.max_length,
            self.batch_tokens,
            self.seed,
            continuous=self.continuous,
        )
        return dict(zip(places, outputs, strict=True))


def load_engine(base: BaseJob, job: EvaluateJob, device: str | None = None) -> Engine:
    """The engine of one base of a job; adapters are fetched from wherever they are.

    Raises:
        UserError: as `Engine`.
    """
    return Engine(
        base.base.model,
        base.base.revision,
        {name: None if path is None else fetch(path) for name, path in base.adapters.items()},
        job.dtype,
        job.scoring_tokens,
        max_length=job.max_length,
        device=device,
        continuous=job.backend == "continuous",
    )


def _are_chats(queries: Sequence[Query], places: Sequence[Place]) -> list[bool]:
    return [queries[q].chat is not None for q, _ in places]


def _requests(queries: Sequence[Query], *kinds: str) -> tuple[list[Place], list[Request]]:
    """All requests of some kinds, with their places."""
    found = [
        ((q, r), request)
        for q, query in enumerate(queries)
        for r, request in enumerate(query.requests)
        if request.kind in kinds
    ]
    return [place for place, _ in found], [request for _, request in found]


def _total(windows: Sequence[Output | str]) -> Output | str:
    """A document's log-likelihood: the sum over its windows, none if one has none."""
    total = 0.0
    for window in windows:
        if isinstance(window, str):
            return window
        assert window.loglikelihood is not None
        total += window.loglikelihood
    return Output(loglikelihood=total)


def _assemble(query: Query, number: int, results: Mapping[Place, Output | str]) -> Answer:
    """One query's answer; one failed request fails it."""
    outputs: list[Output] = []
    if not query.requests:
        return Answer(id=query.id, outputs=(), error="it has no requests")
    for r, request in enumerate(query.requests):
        result = results.get((number, r), f"its kind {request.kind!r} is unknown")
        if isinstance(result, str):
            return unanswered(query, r, result)
        outputs.append(result)
    return Answer(id=query.id, outputs=tuple(outputs))
