"""Harness tasks on local files, and a model that says anything, but always the same."""

import hashlib
import json
from pathlib import Path
from typing import Any

from muscle.config import TaskConfig
from muscle.types import Answer, Output, Query


def write_task(folder: Path, name: str, yaml: str, rows: list[dict], code: str = "") -> str:
    """A task YAML on a local file; returns the folder to include."""
    (folder / "yaml").mkdir(exist_ok=True)
    files = {}
    for split, found in (("train", rows[::-1]), ("test", rows)):
        path = folder / f"{name}_{split}.jsonl"
        path.write_text("".join(json.dumps(r) + "\n" for r in found), encoding="utf-8")
        files[split] = str(path)
    head = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": files, "cache_dir": str(folder / "cache")},
    }
    lines = "\n".join(f"{key}: {json.dumps(value)}" for key, value in head.items())
    (folder / "yaml" / f"{name}.yaml").write_text(lines + "\n" + yaml, encoding="utf-8")
    if code:
        (folder / "yaml" / f"{name}_code.py").write_text(code, encoding="utf-8")
    return str(folder / "yaml")


def config(folder: Path, name: str, **settings: Any) -> TaskConfig:
    return TaskConfig(name=name, include_path=str(folder / "yaml"), **settings)


def fake_output(kind: str, first: str, second: str | None = None, place: int = 0) -> Any:
    text = json.dumps([kind, first, second, place])
    draw = int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)
    if kind == "generate_until":
        return ("a b c", "a b d", " b", "The answer is 7.", "The answer is 8.")[draw % 5]
    loglikelihood = -(draw % 1000) / 37 - 0.01
    if kind == "loglikelihood_rolling":
        return loglikelihood * len(first)
    return (loglikelihood, draw % 5 == 0)


def fake_model(chat: Any = None) -> Any:
    """The fake model as the harness's `LM`; `chat` renders messages, as HFLM's method."""
    from lm_eval.api.model import LM

    class Fake(LM):
        tokenizer_name = "tiny"

        def apply_chat_template(self, chat_history, add_generation_prompt=True):
            return chat(chat_history, add_generation_prompt)

        def loglikelihood(self, requests):
            return [fake_output("loglikelihood", *r.args) for r in requests]

        def loglikelihood_rolling(self, requests):
            return [fake_output("loglikelihood_rolling", *r.args) for r in requests]

        def generate_until(self, requests):
            seen: dict[int, int] = {}
            found = []
            for request in requests:
                place = seen[id(request)] = seen.get(id(request), -1) + 1
                found.append(fake_output("generate_until", request.args[0], None, place))
            return found

    return Fake()


def answer(query: Query) -> Answer:
    """What the fake model says to a query."""
    outputs: list[Output] = []
    for index, r in enumerate(query.requests):
        place = next(
            n for n in range(index + 1) if n == index or query.requests[index - n - 1] != r
        )
        if r.kind == "generate_until":
            outputs.append(Output(text=fake_output(r.kind, r.context, None, place)))
        elif r.kind == "loglikelihood_rolling":
            outputs.append(Output(loglikelihood=fake_output(r.kind, r.context)))
        else:
            value, greedy = fake_output(r.kind, r.context, r.continuation)
            outputs.append(Output(loglikelihood=value, is_greedy=greedy))
    return Answer(query.id, tuple(outputs))


def oracle(include: str, name: str, **settings: Any) -> Any:
    """The harness alone: its loader, its evaluator, its aggregation."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from muscle.tasks.harness import quiet

    manager = TaskManager(include_path=include, include_defaults=False)
    with quiet():
        return simple_evaluate(
            model=settings.pop("model", None) or fake_model(),
            tasks=[name],
            task_manager=manager,
            bootstrap_iters=0,
            **settings,
        )


def scores_of(result: dict) -> dict[str, float]:
    """The "metric,filter" entries of a harness result, without standard errors."""
    return {k: v for k, v in result.items() if "," in k and "_stderr" not in k}
