"""The examples that may not flip: their file, and what became of them."""

from collections import Counter
from collections.abc import Collection

from muscle.errors import UserError
from muscle.gate.decide import Kept
from muscle.gate.outcomes import Example, Outcomes, Wanted
from muscle.report.text import one_line
from muscle.storage import filesystem


def read_text(path: str, what: str) -> str:
    """A small text file of a user's, without a byte order mark.

    Raises:
        UserError: it is missing, can't be read or is no UTF-8.
    """
    files, inside = filesystem(path)
    try:
        text = files.cat_file(inside).decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{what} {path!r} does not exist") from None
    except OSError as error:
        raise UserError(f"{what} {path!r} can't be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise UserError(f"{what} {path!r} is not UTF-8 text") from None
    return str(text)


def read_must_keep(path: str, tasks: Collection[str]) -> list[Wanted]:
    """The entries of a must-keep file: an id on each line, or a task, a tab and an id.

    Lines that begin with "#" are comments; repeated lines count once. A line with a tab whose
    first part is none of `tasks` is an id that holds a tab.

    Raises:
        UserError: the file can't be read, or lists nothing.
    """
    entries: dict[Wanted, None] = {}
    for line in read_text(path, "must-keep").split("\n"):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        task, tab, name = text.partition("\t")
        split = bool(tab) and task.strip() in tasks
        entries[(task.strip(), name.strip()) if split else (None, text)] = None
    if not entries:
        raise UserError(f"must-keep {one_line(path, 200)!r} lists no id: write one on each line")
    return list(entries)


def keep(file: str, wanted: list[Wanted], outcomes: Outcomes, waived: Collection[Example]) -> Kept:
    """What became of the listed examples; a flip in any seed is a flip.

    Raises:
        UserError: an id that no task has.
    """
    listed = sorted(frozenset().union(*outcomes.resolve(wanted, file)))
    flipped = [example for example in listed if example in outcomes.flipped]
    unscored = [e for e in listed if e in outcomes.unscored and e not in outcomes.flipped]
    return Kept(
        file=file,
        ids=len(listed),
        counts=Counter(task for task, _ in listed),
        flipped=[{"task": t, "id": i, "waived": (t, i) in waived} for t, i in flipped],
        unscored=[{"task": t, "id": i} for t, i in unscored],
    )
