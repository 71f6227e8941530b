"""What only a GPU can show; skipped without one."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
import torch

from muscle.config import CompatibilityConfig, MaskName
from muscle.evaluation import Engine
from muscle.evaluation.generation import Prompt, generate
from muscle.losses.distillation import TokenOutputs, distillation_sums
from muscle.models.head import Head
from muscle.training.job import TrainJob
from muscle.training.loop import train_alone
from muscle.types import Query, Request

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]


def test_log_likelihoods_agree_with_the_cpu(tiny_models: dict[str, str]) -> None:
    queries = [
        Query(str(i), tuple(Request("loglikelihood", f"thing {i} is", f" {c}") for c in "abc"))
        for i in range(40)
    ]
    found = {}
    for device in ("cpu", "cuda"):
        engine = Engine(tiny_models["new"], None, {"new": None}, "float32", None, device=device)
        answers = engine.answer("new", queries)
        found[device] = [o.loglikelihood for a in answers for o in a.outputs]
    assert found["cuda"] == pytest.approx(found["cpu"], rel=1e-4)


@pytest.mark.parametrize("continuous", [False, True])
def test_generated_texts_are_those_of_the_cpu(
    tiny_models: dict[str, str], continuous: bool
) -> None:
    start = "thing 1 is red and thing 2 is blue and "
    found = {}
    for device in ("cpu", "cuda"):
        engine = Engine(tiny_models["new"], None, {"new": None}, "float32", None, device=device)
        contexts = engine.encoder.contexts([f"{start}thing {i} is" for i in range(40)])
        wish = json.dumps({"until": ["b"], "max_gen_toks": 12})
        prompts = [Prompt(context, wish, str(i)) for i, context in enumerate(contexts)]
        found[device] = generate(
            engine.model,
            engine.tokenizer,
            prompts,
            engine.max_length,
            engine.batch_tokens,
            continuous=continuous and device == "cuda",
        )
    assert found["cuda"] == found["cpu"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_training_learns_on_the_gpu(
    dtype: str, make_job: Callable[..., TrainJob], tmp_path: Path
) -> None:
    job = make_job(tmp_path, gradient_checkpointing=True, training_tokens=None)
    training = job.training.model_copy(update={"dtype": dtype, "epochs": 3})
    train_alone(dataclasses.replace(job, training=training), lambda progress: None, "cuda")
    curve = json.loads((tmp_path / "out" / "training.json").read_text())["curve"]
    assert curve[-1]["loss"] < curve[0]["loss"]


@pytest.mark.parametrize("mask", get_args(MaskName))
def test_losses_and_gradients_agree_with_the_cpu(mask: MaskName) -> None:
    torch.manual_seed(0)
    hidden = {name: torch.randn(90, 32) for name in ("student", "old", "new")}
    heads = {"old": torch.randn(500, 32), "new": torch.randn(504, 32)}
    gold, sequence = torch.randint(500, (90,)), torch.arange(90) // 9
    loss = CompatibilityConfig(mask=mask, ce_weight=0.3)
    found = {}
    for device in ("cpu", "cuda"):
        on = {name: value.to(device) for name, value in hidden.items()}
        student = on["student"].clone().requires_grad_()  # a leaf on either device
        outputs = {n: TokenOutputs(on[n], Head(heads[n].to(device))) for n in ("old", "new")}
        mine = TokenOutputs(student, Head(heads["new"].to(device)))
        sums = distillation_sums(mine, outputs, gold.to(device), sequence.to(device), loss)
        sums.loss.backward()
        found[device] = (sums.loss.item(), student.grad.cpu())  # type: ignore[union-attr]
    assert found["cuda"][0] == pytest.approx(found["cpu"][0], rel=1e-4)
    torch.testing.assert_close(found["cuda"][1], found["cpu"][1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_cached_teachers_train_on_the_gpu(
    dtype: str,
    make_compat: Callable[..., TrainJob],
    cached: Callable[[TrainJob, Path], TrainJob],
    tmp_path: Path,
) -> None:
    job = make_compat(tmp_path, mask="always-old")
    training = job.training.model_copy(update={"dtype": dtype, "epochs": 3})
    job = cached(dataclasses.replace(job, training=training), tmp_path / "teachers")
    train_alone(job, lambda progress: None, "cuda")
    curve = json.loads((tmp_path / "out" / "training.json").read_text())["curve"]
    assert curve[-1]["kl_old"] < curve[0]["kl_old"]
