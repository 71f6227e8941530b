"""HFLM's loops restated, for machines on which lm_eval is not installed.

The same work in the same order as `lm_eval.models.huggingface.HFLM` 0.4.13: sorted by
length, right-padded batches through the whole model with logits at every position, one
log-softmax over all of them, its cache of one-token continuations; generation by
transformers' generate on left-padded prompts. What it leaves out costs HFLM time (its
request cache, sharding, chat templates), so as a peer it is rather too fast.
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

Row = tuple[int, list[int], list[int]]


class RestatedHFLM:
    """`loglikelihood` and `generate_until` over (context, continuation or settings) pairs."""

    def __init__(self, model: str, dtype: str, device: str, batch_size: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.device, self.batch_size = device, batch_size
        self.tokenizer: Any = AutoTokenizer.from_pretrained(model)
        loaded: Any = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype))
        self.model: Any = loaded.to(device).eval()
        self.max_length = self.model.config.max_position_embeddings

    def loglikelihood(self, requests: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """(log-likelihood, is_greedy) of each."""
        rows = []
        for i, (context, continuation) in enumerate(requests):
            spaces = len(context) - len(context.rstrip())
            if spaces:
                continuation = context[-spaces:] + continuation
                context = context[:-spaces]
            whole = self.tokenizer.encode(context + continuation)
            start = self.tokenizer.encode(context)
            rows.append((i, start, whole[len(start) :]))
        rows.sort(key=lambda row: (-len(row[1] + row[2]), tuple(row[1] + row[2])))
        # Continuations that differ in their last token only share one forward.
        groups: dict[tuple[int, ...], list[Row]] = defaultdict(list)
        for row in rows:
            groups[tuple(row[1] + row[2][:-1])].append(row)
        answers: dict[int, tuple[float, bool]] = {}
        ordered = list(groups.values())
        for at in range(0, len(ordered), self.batch_size):
            self._score(ordered[at : at + self.batch_size], answers)
        return [answers[i] for i in range(len(requests))]

    def _score(self, batch: list[list[Row]], answers: dict[int, tuple[float, bool]]) -> None:
        import torch

        inputs = []
        for group in batch:
            _, start, rest = group[0]
            inputs.append((start + rest)[-(self.max_length + 1) :][:-1])
        longest = max(map(len, inputs))
        ids = torch.zeros((len(inputs), longest), dtype=torch.long)
        for b, tokens in enumerate(inputs):
            ids[b, : len(tokens)] = torch.tensor(tokens)
        with torch.no_grad():
            logprobs = torch.log_softmax(self.model(ids.to(self.device)).logits, dim=-1)
        for b, group in enumerate(batch):
            for i, _, rest in group:
                end = len(inputs[b])
                scores = logprobs[b, end - len(rest) : end]
                targets = torch.tensor(rest, device=self.device)
                greedy = bool((scores.argmax(dim=-1) == targets).all())
                answers[i] = (float(scores.gather(1, targets[:, None]).sum()), greedy)

    def generate_until(self, requests: Sequence[tuple[str, str]]) -> list[str]:
        """The text of each; all have the same settings."""
        settings = json.loads(requests[0][1])
        room = self.max_length - settings["max_gen_toks"]
        until = [*settings["until"], self.tokenizer.eos_token]
        order = sorted(
            range(len(requests)), key=lambda i: -len(self.tokenizer.encode(requests[i][0]))
        )
        texts: dict[int, str] = {}
        for at in range(0, len(order), self.batch_size):
            chunk = order[at : at + self.batch_size]
            made = self._generate([requests[i][0] for i in chunk], room, settings, until)
            texts.update(zip(chunk, made, strict=True))
        return [texts[i] for i in range(len(requests))]

    def _generate(
        self, contexts: list[str], room: int, settings: dict[str, Any], until: list[str]
    ) -> list[str]:
        import torch
        from transformers import StoppingCriteriaList

        self.tokenizer.padding_side = "left"
        encoded = self.tokenizer(contexts, padding="longest", return_tensors="pt")
        ids = encoded["input_ids"][:, -room:].to(self.device)
        mask = encoded["attention_mask"][:, -room:].to(self.device)
        stops = StoppingCriteriaList([_Stops(self.tokenizer, until, ids.shape)])
        with torch.no_grad():
            out = self.model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_length=ids.shape[1] + settings["max_gen_toks"],
                stopping_criteria=stops,
                pad_token_id=self.tokenizer.pad_token_id,
                use_cache=True,
                do_sample=False,
            )
        texts = []
        for tokens in out.tolist():
            text = self.tokenizer.decode(tokens[ids.shape[1] :], skip_special_tokens=True)
            for stop in until:
                text = text.split(stop)[0]
            texts.append(text)
        return texts


class _Stops:
    """HFLM's criteria: every row's tail is decoded at every step, for every stop string."""

    def __init__(self, tokenizer: Any, until: list[str], shape: Sequence[int]) -> None:
        self.tokenizer, self.start = tokenizer, shape[1]
        self.rules = [
            (stop, len(tokenizer.encode(stop, add_special_tokens=False)) + 2, [False] * shape[0])
            for stop in until
        ]

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> bool:
        for stop, tail, done in self.rules:
            texts = self.tokenizer.batch_decode(input_ids[:, self.start :][:, -tail:])
            for row, text in enumerate(texts):
                done[row] = done[row] or stop in text
        # HFLM ends a batch when all of its rows have met the same stop string.
        return any(all(done) for _, _, done in self.rules)
