"""A task of the user's own files, as a task of the harness.

Prompts are rendered here, by Jinja's sandbox, and the gold answers are resolved here;
the harness gets plain fields. Its own templates run unsandboxed, and they turn gold
texts that look like numbers into indexes.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from muscle.config import TaskConfig
from muscle.errors import UserError
from muscle.tasks.files import Row, read_rows, to_dataset
from muscle.tasks.harness import quiet
from muscle.tasks.rouge import rouge1
from muscle.tasks.rows import OWN, own_row

CHOICE_METRICS = ("acc", "acc_norm")
TEXT_METRICS = ("exact_match", "rouge1")
DEFAULT_MAX_GEN_TOKS = 64  # short answers; the harness's 256 fill a small model's window


def build_own_task(config: TaskConfig) -> Any:
    """The harness `ConfigurableTask` of own files.

    With `choices` it is judged by "acc" (default) or "acc_norm", else the model writes
    an answer, judged by "exact_match" (default; both texts without white space at their
    ends) or "rouge1". Prompt and answer are joined by one space, or by nothing if the
    prompt template ends with white space.

    Raises:
        UserError: anything wrong with the settings or a row, with file and row number.
    """
    _check_settings(config)
    assert config.prompt is not None and config.test is not None
    render = _renderer(config.prompt)
    data = {"test": _dataset(config, "test", config.test, render)}
    if config.train is not None:
        data["train"] = _dataset(config, "train", config.train, render)
    settings: dict[str, Any] = {
        "task": config.name,
        "custom_dataset": lambda **_: data,
        "training_split": "train" if config.train is not None else None,
        "test_split": "test",
        "doc_to_text": "prompt",
        "target_delimiter": "" if config.prompt[-1].isspace() else " ",
        "num_fewshot": 0,
        "metadata": {"version": 1},
    }
    settings |= _choice_settings() if config.choices is not None else _text_settings(config)
    from lm_eval.api.task import ConfigurableTask

    with quiet():
        return ConfigurableTask(config=settings)


def _check_settings(config: TaskConfig) -> None:
    allowed = TEXT_METRICS if config.choices is None else CHOICE_METRICS
    if config.metric is not None and config.metric not in allowed:
        kind = "generated answers" if config.choices is None else "choices"
        raise UserError(
            f"setting 'task.metric' is '{config.metric}': a task of own files with {kind} is "
            f"judged by {' or '.join(allowed)}"
        )
    if "" in (config.until or []):
        raise UserError("setting 'task.until': an empty stop string would stop every answer")


def _choice_settings() -> dict[str, Any]:
    return {
        "output_type": "multiple_choice",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "metric_list": [_metric(name) for name in CHOICE_METRICS],
    }


def _text_settings(config: TaskConfig) -> dict[str, Any]:
    metric = config.metric or TEXT_METRICS[0]
    strip = {"function": "custom", "filter_fn": _strip}
    return {
        "output_type": "generate_until",
        "doc_to_target": "answer",
        "generation_kwargs": {
            "until": config.until or ["\n"],
            "max_gen_toks": config.max_gen_toks or DEFAULT_MAX_GEN_TOKS,
            "do_sample": False,
            "temperature": 0.0,
        },
        "filter_list": [{"name": "none", "filter": [strip, {"function": "take_first"}]}],
        "process_results": _exact_match if metric == "exact_match" else _rouge1,
        "metric_list": [_metric(metric)],
    }


def _metric(name: str) -> dict[str, Any]:
    return {"metric": name, "aggregation": "mean", "higher_is_better": True}


def _strip(resps: Sequence[Sequence[str]], docs: Any) -> list[list[str]]:
    return [[text.strip() for text in texts] for texts in resps]


def _exact_match(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    return {"exact_match": float(results[0].strip() == doc["answer"].strip())}


def _rouge1(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    return {"rouge1": rouge1(results[0], doc["answer"], any_script=True)}


def _dataset(config: TaskConfig, key: str, path: str, render: Callable[[Row, str], str]) -> Any:
    """The rows of a file as documents {id, prompt, choices, gold} or {id, prompt, answer},
    with the row itself as JSON."""
    docs = []
    for row in read_rows(path, f"task.{key}"):
        where = f"{path}, row {row.number}"
        doc: dict[str, Any] = {"id": _id(row.fields.get("id")), "prompt": render(row, where)}
        gold = _field(row, config.target, "target", where)
        if config.choices is None:
            doc["answer"] = _text(gold, f"{where}: field '{config.target}'")
        else:
            choices = config.choices
            if isinstance(choices, str):
                choices = _field(row, choices, "choices", where)
            doc["choices"] = _choice_texts(choices, where)
            doc["gold"] = _gold(gold, choices, doc["choices"], where)
        doc[OWN] = own_row(row.fields)
        docs.append(doc)
    return to_dataset(docs, path)


def unlabelled_dataset(config: TaskConfig, rows: Sequence[Row], path: str) -> Any:
    """Rows of a file of the user's as documents in whose place of a right answer anything stands.

    Raises:
        UserError: a row without the fields of the prompt or the choices.
    """
    assert config.prompt is not None
    render = _renderer(config.prompt)
    docs = []
    for row in rows:
        where = f"{path}, row {row.number}"
        doc: dict[str, Any] = {"prompt": render(row, where)}
        if config.choices is None:
            doc["answer"] = ""
        else:
            choices = config.choices
            if isinstance(choices, str):
                choices = _field(row, choices, "choices", where)
            doc["choices"], doc["gold"] = _choice_texts(choices, where), 0
        docs.append(doc)
    return to_dataset(docs, path)


def _renderer(template: str) -> Callable[[Row, str], str]:
    """A function that fills the prompt template, in Jinja's sandbox."""
    from jinja2 import StrictUndefined, TemplateError, meta
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def no_null(value: Any) -> Any:
        if value is None:
            raise ValueError("it prints a field that is null")
        return value

    sandbox = ImmutableSandboxedEnvironment(
        undefined=StrictUndefined, keep_trailing_newline=True, finalize=no_null
    )
    try:
        names = meta.find_undeclared_variables(sandbox.parse(template))
        compiled = sandbox.from_string(template)
    except TemplateError as error:
        raise UserError(f"setting 'task.prompt' is not a Jinja template: {error}") from None

    def render(row: Row, where: str) -> str:
        unknown = sorted(names - row.fields.keys() - sandbox.globals.keys())
        if unknown:
            raise UserError(
                f"{where}: no field '{unknown[0]}', which task.prompt uses "
                f"(fields: {', '.join(row.fields)})"
            )
        try:
            return compiled.render(row.fields)
        except Exception as error:  # a template can fail in any way
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{where}: task.prompt can't be filled in: {reason}") from None

    return render


def _id(value: Any) -> str | None:
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else None


def _field(row: Row, name: str | None, setting: str, where: str) -> Any:
    assert name is not None
    if row.fields.get(name) is None:
        problem = "is null" if name in row.fields else "is missing"
        raise UserError(
            f"{where}: field '{name}' (task.{setting}) {problem} (fields: {', '.join(row.fields)})"
        )
    return row.fields[name]


def _text(value: Any, where: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UserError(f"{where} is {value!r}: it must be a text or a number")
    return str(value)


def _choice_texts(choices: Any, where: str) -> list[str]:
    if not isinstance(choices, list):
        raise UserError(f"{where}: the choices are {choices!r}: they must be a list of texts")
    texts = [_text(choice, f"{where}: choice {i}") for i, choice in enumerate(choices)]
    if len(texts) < 2:
        raise UserError(f"{where}: {len(texts)} choices: at least two are needed")
    if not all(texts):
        raise UserError(f"{where}: choice {texts.index('')} is an empty text")
    if len(set(texts)) < len(texts):
        raise UserError(f"{where}: two of the choices are the same text")
    return texts


def _gold(value: Any, choices: Sequence[Any], texts: Sequence[str], where: str) -> int:
    """The index of the gold choice: a text is looked up, only a number is an index."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UserError(f"{where}: the gold answer {value!r} is neither a choice nor its index")
    if isinstance(value, str):
        if value in texts:
            return texts.index(value)
    elif any(not isinstance(c, str) for c in choices):
        if str(value) in texts:  # the choices are numbers too, so it is one of them
            return texts.index(str(value))
    elif isinstance(value, int):
        if str(value) in texts:
            raise UserError(
                f"{where}: gold {value} could be the index or the choice '{value}': "
                "write the choice's text as a string"
            )
        if 0 <= value < len(texts):
            return value
    raise UserError(f"{where}: the gold answer {value!r} is not among the choices {list(texts)}")
