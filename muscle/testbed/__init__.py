"""The testbed that ships with the package: a small synthetic world, three tasks, two models.

For the demo, the tests and anyone without a network. `world` is what is true, `text`
what the base models read about it, `choice`, `arithmetic` and `summary` the three tasks,
`rows` what the harness files in `tasks/` call, `pretrain` makes the models again.
"""

from pathlib import Path

from muscle.errors import UserError

_HERE = Path(__file__).resolve().parent

TASKS_DIR: str = str(_HERE / "tasks")
"""The folder of the harness files, for `TaskManager(include_path=TASKS_DIR)`."""

TASKS: tuple[str, ...] = ("testbed_choice", "testbed_arithmetic", "testbed_summary")

MODELS: tuple[str, ...] = ("v1", "v2")


CHAT_MODELS: tuple[str, ...] = ("chat-v1", "chat-v2")
"""The same two, gone on with chats and JSON (`muscle.testbed.company`)."""


def model_path(name: str) -> str:
    """The absolute path of a shipped base model, in Hugging Face format.

    "v2" is the update of "v1": more parameters, more text, the same tokenizer. "chat-v2" also has
    special tokens and a chat template of its own.
    Raises `UserError` for any other name.
    """
    known = (*MODELS, *CHAT_MODELS)
    if name not in known:
        raise UserError(f"testbed model {name!r} does not exist: use one of {', '.join(known)}")
    return str(_HERE / "models" / name)
