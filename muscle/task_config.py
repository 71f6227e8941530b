"""What a task is: one of the harness's, the user's own rows, the user's own chats."""

import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from muscle.settings import Part, Positive


class DataFiles(Part):
    """Local or remote JSONL(.gz)/Parquet files that stand in for a task's hub data set."""

    train: str | None = None
    validation: str | None = None
    test: str | None = None

    def given(self) -> dict[str, str]:
        """The splits that have a file."""
        return {k: v for k, v in self.model_dump().items() if v is not None}


class TaskConfig(Part):
    """A harness task by name, or the user's own files.

    Harness task: `name`, optionally `data_files` (local copies of its splits) and
    `include_path` (a folder of harness YAMLs). Own files: `train`, `test`, `prompt`
    (Jinja over the row's fields) and either `choices` (texts, or the name of a field
    that holds a list) with `target` naming the gold (its text or index), or `target`
    alone for generated answers.

    Own chats: `format: chat`, whose rows hold `id`, `messages` and a gold answer, see
    docs/chat.md. `scorer` judges what a model writes; with `choices` the labels are scored.
    """

    name: str
    # harness task
    data_files: DataFiles | None = None
    include_path: str | None = None
    num_fewshot: int | None = Field(default=None, ge=0)
    # own files
    train: str | None = None
    test: str | None = None
    prompt: str | None = None
    target: str | None = None
    choices: list[str] | str | None = None
    until: list[str] | None = None  # where a generated answer ends; default: a line break
    # own chats
    format: Literal["chat"] | None = None
    validation: str | None = None  # default: a part of the training split
    scorer: str | None = None  # default: label where there are labels, else exact
    labels: list[str] | None = None  # default: the gold answers of all splits
    group: str | None = None  # a column: rows that share it stay on one side of every split
    overlap: Literal["refuse", "drop", "keep"] = "refuse"
    date: str | None = None  # today, as templates are told it; default: a fixed day
    # both
    max_gen_toks: Positive | None = None
    metric: str | None = None
    filter: str | None = None

    @field_validator("name")
    @classmethod
    def _name_is_a_file_name(cls, name: str) -> str:
        # The name becomes `<version>/<name>.parquet`.
        if not name or any(c in name for c in "/\\\0") or name in {".", ".."}:
            raise ValueError("a task name must not be empty or contain '/' or '\\'")
        return name

    @property
    def is_own(self) -> bool:
        """Whether the task is defined by the user's own files."""
        return self.prompt is not None or self.is_chat

    @property
    def is_chat(self) -> bool:
        """Whether its examples are chats, which each version's own template renders."""
        return self.format == "chat"

    @field_validator("scorer")
    @classmethod
    def _known_scorer(cls, scorer: str | None) -> str | None:
        names = ("exact", "label", "json_fields", "rouge1")
        if scorer is None or scorer in names:
            return scorer
        if re.fullmatch(r"python:[A-Za-z_][\w.]*:[A-Za-z_]\w*", scorer):
            return scorer
        raise ValueError(
            f"no scorer is called '{scorer}': known are {', '.join(names)} and "
            "python:MODULE:FUNCTION"
        )

    @model_validator(mode="after")
    def _chat(self) -> "TaskConfig":
        if not self.is_chat:
            names = ("validation", "scorer", "labels", "group", "date")
            given = [n for n in names if getattr(self, n) is not None]
            given += ["overlap"] if self.overlap != "refuse" else []
            if given:
                raise ValueError(f"'{given[0]}' is for chats: set 'format: chat'")
            return self
        others = ("prompt", "data_files", "include_path", "num_fewshot", "metric", "filter")
        wrong = [name for name in others if getattr(self, name) is not None]
        if wrong:
            raise ValueError(f"'{wrong[0]}' is not for chats ('format: chat'): leave it out")
        if not self.test:
            raise ValueError("a task of chats needs 'test', a file of rows")
        if isinstance(self.choices, str):
            raise ValueError("'choices' of chats are a list of texts")
        if self.choices is not None and (self.scorer or self.labels):
            raise ValueError(
                "with 'choices' the given labels are scored and the likeliest is the answer: "
                "leave 'scorer' and 'labels' out, or 'choices', to have the answer written"
            )
        if self.labels is not None and self.scorer not in (None, "label"):
            raise ValueError(f"'labels' are for the scorer label, not for '{self.scorer}'")
        return self

    @model_validator(mode="after")
    def _one_kind(self) -> "TaskConfig":
        if self.is_chat:
            return self
        own = {k for k in ("train", "test", "prompt", "target", "choices") if getattr(self, k)}
        if self.choices is not None and not self.choices:
            raise ValueError("'choices' is empty: give at least two choices")
        if isinstance(self.choices, list) and len(self.choices) < 2:
            raise ValueError("'choices' needs at least two choices")
        if not own:
            if self.until is not None:
                raise ValueError("'until' is for own files; a harness task brings its own")
            return self
        missing = [k for k in ("test", "prompt") if not getattr(self, k)]
        if missing:
            raise ValueError(
                f"a task of own files needs {' and '.join(map(repr, missing))} "
                "(or leave train, test, prompt, target and choices out for a harness task)"
            )
        if not self.target:
            raise ValueError("'target' is missing: the field that holds the right answer")
        for key in ("data_files", "include_path", "num_fewshot"):
            if getattr(self, key) is not None:
                raise ValueError(f"'{key}' is for harness tasks, not for own files")
        return self
