"""How long a task's training sequences are, in tokens of a base model that is here.

    MUSCLE_DATA=DATA MUSCLE_MODELS=MODELS python benchmarks/lengths.py

For `scaling.py`, which has neither data nor tokenizer: 201 quantiles of each task, read off its
validation split (prompt, right answer, EOS), which has both of HellaSwag's sources. A tokenizer
with fewer words gives longer sequences than a 7B's 32,000.
"""

import os

import numpy as np
import record

from muscle.config import DataFiles, TaskConfig
from muscle.models.load import load_tokenizer
from muscle.models.sequences import tokenise
from muscle.tasks import load_task

TASKS = ("hellaswag", "piqa")


def main() -> None:
    tokenizer = load_tokenizer(os.path.join(os.environ["MUSCLE_MODELS"], "v2"))
    found = {}
    for task in TASKS:
        folder = os.path.join(os.environ["MUSCLE_DATA"], task)
        files = dict.fromkeys(("train", "validation"), f"{folder}/validation.jsonl.gz")
        loaded = load_task(TaskConfig(name=task, data_files=DataFiles(**files)))
        data = tokenise(loaded.training_examples(), tokenizer, 1024, "all")
        lengths = np.array([len(ids) for ids in data.ids])
        found[task] = {
            "examples": len(lengths),
            "mean": float(lengths.mean()),
            "quantiles": np.quantile(lengths, np.linspace(0, 1, 201), method="nearest").tolist(),
        }
    what = "tokens of training sequences"
    path = record.write_result(
        "lengths", {"what": what, "vocabulary": len(tokenizer), "tasks": found}
    )
    print(path.relative_to(record.ROOT), {t: (f["examples"], f["mean"]) for t, f in found.items()})


if __name__ == "__main__":
    main()
