"""Completions with echo and logprobs as vLLM gives them, by transformers on a tiny model."""

from typing import Any

from fake_server import Fake, Reply


class Echo:
    """`behave` of a fake server that scores a prompt with a model of this machine."""

    def __init__(self, path: str) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.torch = torch
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()

    def __call__(self, fake: Fake, path: str, body: dict[str, Any]) -> Reply:
        torch = self.torch
        ids = self.tokenizer(body["prompt"])["input_ids"]
        with fake.lock, torch.no_grad():
            logits = self.model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
        ids = [*ids, int(logits[-1].argmax())]
        tokens = [self.tokenizer.decode([i]) for i in ids]
        logprobs: list[float | None] = [None]
        top: list[dict[str, float] | None] = [None]
        for place, token in enumerate(ids[1:]):
            best = int(logits[place].argmax())
            logprobs.append(float(logits[place, token]))
            top.append({self.tokenizer.decode([best]): float(logits[place, best])})
        offsets = [sum(map(len, tokens[:i])) for i in range(len(tokens))]  # BOS counts, as in vLLM
        found = {
            "tokens": tokens,
            "token_logprobs": logprobs,
            "text_offset": offsets,
            "top_logprobs": top,
        }
        usage = {"prompt_tokens": len(ids) - 1, "completion_tokens": 1}
        choice = {"index": 0, "text": body["prompt"], "finish_reason": "length", "logprobs": found}
        return Reply({"choices": [choice], "usage": usage})
