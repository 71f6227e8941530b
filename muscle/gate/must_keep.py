"""The examples that may not flip: their file, and what became of them."""

from collections import Counter
from collections.abc import Collection, Sequence

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


def read_must_keep(path: str, tasks: Collection[str]) -> tuple[list[Wanted], list[str]]:
    """The entries of a must-keep file, and its comments as they stand there.

    An entry is an id on a line, or a task, a tab and an id; repeated lines count once. Lines
    that begin with "#" are comments, see `refuse_ids`. A line with a tab whose first part is
    none of `tasks` is an id that holds a tab.

    Raises:
        UserError: the file can't be read, or lists nothing.
    """
    entries: dict[Wanted, None] = {}
    comments = []
    for line in read_text(path, "must-keep").split("\n"):
        text = line.strip()
        if not text:
            continue
        if text.startswith("#"):
            comments.append(text)
            continue
        task, tab, name = text.partition("\t")
        split = bool(tab) and task.strip() in tasks
        entries[(task.strip(), name.strip()) if split else (None, text)] = None
    if not entries:
        hint = " ('#' begins a comment: write task<TAB>id for such an id)" if comments else ""
        raise UserError(
            f"must-keep {one_line(path, 200)!r} lists no id: write one on each line{hint}"
        )
    return list(entries), comments


def ids_in(comments: Sequence[str]) -> list[str]:
    """The ids that comments may be meant as: with their "#", and without it."""
    return [text for comment in comments for text in (comment, comment[1:])]


def refuse_ids(file: str, comments: Sequence[str], outcomes: Outcomes) -> None:
    """Refuse a comment that is an id: whoever wrote it may believe that it is kept.

    Args:
        outcomes: of examples with the ids in `ids_in(comments)`, among others.

    Raises:
        UserError: a line "#17" where an example is called "#17" or "17".
    """
    known = {name: task for task, name in sorted(outcomes.known, reverse=True)}
    for comment in comments:
        for name in (comment, comment[1:]):
            if name in known:
                task = one_line(known[name], 60)
                raise UserError(
                    f"{file}: the line {one_line(comment, 80)!r} is a comment, but "
                    f"{one_line(name, 80)!r} is an id: write task<TAB>id to keep it "
                    f"({task}<TAB>{one_line(name, 80)}), or a space after '#'"
                )


def keep(
    file: str,
    wanted: list[Wanted],
    outcomes: Outcomes,
    waived: Collection[Example],
    graded: Collection[str] = (),
) -> Kept:
    """What became of the listed examples; a flip in any seed is a flip.

    Args:
        graded: tasks whose scores are graded, where no answer is wrong.

    Raises:
        UserError: an id that no task has.
    """
    listed = sorted(frozenset().union(*outcomes.resolve(wanted, file)))
    flipped = [example for example in listed if example in outcomes.flipped]
    unscored = [e for e in listed if e in outcomes.unscored and e not in outcomes.flipped]
    missing = set(unscored)
    wrong = [
        e for e in listed if e not in outcomes.right and e not in missing and e[0] not in graded
    ]
    return Kept(
        file=file,
        ids=len(listed),
        counts=Counter(task for task, _ in listed),
        flipped=[{"task": t, "id": i, "waived": (t, i) in waived} for t, i in flipped],
        unscored=[{"task": t, "id": i} for t, i in unscored],
        wrong=[{"task": t, "id": i} for t, i in wrong],
    )
