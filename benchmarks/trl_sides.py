"""TRL's distillation trainers as sides of training.py: one teacher, forward KL, the same tokens.

`trl-gkd` is GKDTrainer off-policy (lmbda 0, beta 0), which takes given answers; `trl-chunked` is
the newer DistillationTrainer, whose loss goes over chunks, with the given tokens put where it
would generate. Both run their own training loop; a step is timed between its callbacks.
"""

import os
import tempfile
import time
from typing import Any

import torch
from models import word_tokenizer
from steps import adapted, base, settled

from muscle.models.sequences import Batch


def run_trl(spec: dict[str, Any], batches: list[Batch]) -> tuple[list[float], list[float], float]:
    """Seconds and processor seconds of each update, warm-up included, and the mean loss."""
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    model = adapted(spec, base(spec, "new"), "student", trains=True)
    teacher = adapted(spec, base(spec, "old"), "old", trains=False).eval()
    clock = make_clock(spec)
    with tempfile.TemporaryDirectory() as folder:
        arguments = common(spec, folder)
        build = gkd if spec["side"] == "trl-gkd" else chunked
        trainer = build(spec, batches, model, teacher, arguments, clock)
        settled(spec)
        result = trainer.train()
    return clock.seconds, clock.processor, float(result.training_loss)


def common(spec: dict[str, Any], folder: str) -> dict[str, Any]:
    """Arguments that both trainers take: the other sides' optimizer, nothing logged or saved."""
    return {
        "output_dir": folder,
        "per_device_train_batch_size": spec["tokens"] // spec["length"],
        "gradient_accumulation_steps": spec["accumulation"],
        "max_steps": spec["warm_up"] + spec["updates"],
        "learning_rate": 1e-5,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": 0.0,
        "optim": "adamw_torch",
        "gradient_checkpointing": spec["gradient_checkpointing"],
        "bf16": False,  # the weights are in the dtype already: no autocast
        "use_cpu": spec["device"] == "cpu",
        "save_strategy": "no",
        "report_to": "none",
        "logging_steps": 10**6,
        "disable_tqdm": True,
        "beta": 0.0,
        "temperature": spec["temperature"],
    }


def make_clock(spec: dict[str, Any]) -> Any:
    """A callback that keeps the seconds of each update."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.seconds: list[float] = []
            self.processor: list[float] = []
            self.began = self.worked = 0.0

        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            self.began, self.worked = self._now(), time.process_time()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            self.seconds.append(self._now() - self.began)
            self.processor.append(time.process_time() - self.worked)

        @staticmethod
        def _now() -> float:
            if spec["device"] == "cuda":
                torch.cuda.synchronize()
            return time.perf_counter()

    return Clock()


def gkd(
    spec: dict[str, Any],
    batches: list[Batch],
    model: Any,
    teacher: Any,
    arguments: dict[str, Any],
    clock: Any,
) -> Any:
    """GKDTrainer on given answers."""
    from datasets import Dataset
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    rows = spec["tokens"] // spec["length"]
    count = rows * spec["accumulation"]

    def collate(items: list[dict[str, int]]) -> dict[str, torch.Tensor]:
        places = [item["index"] % count for item in items]
        ids = torch.stack([batches[at // rows].input_ids[at % rows] for at in places])
        labels = ids.clone()
        labels[:, 0] = -100
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}

    return GKDTrainer(
        model=model,
        teacher_model=teacher,
        args=GKDConfig(lmbda=0.0, **arguments),
        data_collator=collate,
        train_dataset=Dataset.from_dict({"index": list(range(count))}),
        processing_class=word_tokenizer(),
        callbacks=[clock],
    )


def chunked(
    spec: dict[str, Any],
    batches: list[Batch],
    model: Any,
    teacher: Any,
    arguments: dict[str, Any],
    clock: Any,
) -> Any:
    """DistillationTrainer with our tokens in place of generated ones."""
    from datasets import Dataset
    from trl import DistillationConfig, DistillationTrainer

    class Given(DistillationTrainer):
        def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
            ids = batches[self._step % len(batches)].input_ids.to(spec["device"])
            ones = torch.ones_like(ids)
            total = ones[:, 1:].sum() * len(batches)
            return {
                "prompt_ids": ids[:, :1],
                "prompt_mask": ones[:, :1],
                "completion_ids": ids[:, 1:],
                "completion_mask": ones[:, 1:],
                "num_items_in_batch": total,
            }

    tokenizer = word_tokenizer()
    tokenizer.padding_side = "left"
    prompts = ["w4"] * (spec["tokens"] // spec["length"] * spec["accumulation"])
    return Given(
        model=model,
        teacher_model=teacher,
        args=DistillationConfig(**arguments),
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        processing_class=tokenizer,
        callbacks=[clock],
    )
